"""Memories of earlier answers in a benchmark, and what they hold when a question is asked.

Each method has a memory for each way to sample and each repeat. So it holds the method's answers to
the questions before, and never one to the question that is asked. A warm one begins with answers to
other questions, which are not reported.
"""

from collections.abc import Sequence

from treesnake.decoder import SpeculativeDecoder
from treesnake.drafters.memory import MemoryDrafter
from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.record import RunRecord
from treesnake.evaluation.bench.turns import prompt_behind
from treesnake.evaluation.tasks import Question
from treesnake.memory.text_memory import TextMemory
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams

Said = tuple[Prompt, Sequence[int]]


class ServedMemories:
    """The memories of a pair's methods.

    Args:
        decoder: the target with its tokenizer; it answers the questions that come before.
        served: these questions.
        asked: the questions that are reported.
        max_new_tokens: of an answer.

    Raises:
        InvalidInputError: if a question that comes before is reported, too.
    """

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        served: Sequence[Question],
        asked: Sequence[Question],
        max_new_tokens: int,
    ) -> None:
        reported = {question.turns for question in asked}
        for question in served:
            if question.turns in reported:
                raise InvalidInputError(
                    f"the question {question.name} would fill the memory and is reported, too: "
                    "its answer would be known before it is asked; warm the memory with others"
                )
        self._decoder = decoder
        self._served = served
        self._max_new_tokens = max_new_tokens
        self._said: dict[tuple[str, int], list[Said]] = {}
        self._memories: dict[tuple[str, str, int], TextMemory] = {}

    def of(self, run: RunRecord, params: SamplingParams) -> TextMemory:
        """Returns the memory that a run draws on and adds to."""
        key = (run.method, run.sampling, run.repeat)
        if key not in self._memories:
            memory = self._memories[key] = TextMemory()
            for prompt, answer in self._said_before(run, params):
                _remember(memory, prompt, answer)
        return self._memories[key]

    def take_up(self, run: RunRecord, question: Question, params: SamplingParams) -> None:
        """Adds the answers of a run that was made before this process began."""
        memory = self.of(run, params)
        for number, turn in enumerate(run.turns):
            prompt = prompt_behind(self._decoder, question, run.turns[:number])
            _remember(memory, prompt, turn.token_ids)

    def _said_before(self, run: RunRecord, params: SamplingParams) -> list[Said]:
        """Answers the questions that come before, once for all methods."""
        key = (run.sampling, run.repeat)
        if key not in self._said:
            prompts = [prompt_behind(self._decoder, question, ()) for question in self._served]
            most = self._max_new_tokens
            self._said[key] = [
                (prompt, self._decoder.generate(prompt, params, max_new_tokens=most).token_ids)
                for prompt in prompts
            ]
        return self._said[key]


def _remember(memory: TextMemory, prompt: Prompt, answer: Sequence[int]) -> None:
    """Adds an answer as a session that wrote it would."""
    drafter = MemoryDrafter(memory)
    drafter.prefill(prompt)
    drafter.commit([prompt.token_ids[-1], *answer[:-1]])
    drafter.remember()
