"""What could a memory of earlier texts save at most, where work repeats itself?

    uv run python benchmarks/memory_bound.py
        --targets smollm2 qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --output results/memory_bound.json

An oracle drafts from texts: behind the last two tokens it knows the place where what comes next
agrees with the answer for longest, and how long that is. Its nodes take no time and none is wrong,
so nothing that copies from the same texts needs fewer steps. It has the text itself, or earlier
answers of the same kind as well; and beside either the drafter's chain of first choices, where the
drafter has the target's tokens. The first answer of each kind is not counted: nothing is earlier.
So this needs no quiet machine.

The work is recipes/bench/repetitive_work.jsonl; samples at a temperature of 0.7, the rest greedily.
"""

from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from frame import Result, print_table, run

from treesnake import SamplingParams, SpeculativeDecoder
from treesnake.conversation import user_message
from treesnake.drafters.learning import reader_of
from treesnake.drafters.output_steps import Places
from treesnake.drafters.said_texts import SaidText, SameTokenReader
from treesnake.evaluation.tasks import Question, load_questions
from treesnake.models.output_layer import OutputLayer
from treesnake.pairs import Pair

WORK = Path(__file__).parent.parent / "recipes" / "bench" / "repetitive_work.jsonl"
SAMPLED_WORK = "samples of one question"
RUN = 2
"""Tokens before a place that agree with those before the answer's next token."""

NUM_CONTEXT = 16
"""Tokens in front of an answer that a memory keeps with it."""

LONGEST_CHAIN = 16
"""First choices of the drafter in a row."""


@dataclass(frozen=True)
class Answered:
    """An answer.

    Attributes:
        before: tokens of its prompt.
        said: tokens of the answer.
        is_guessed: for each of them, whether it is the drafter's first choice.
    """

    before: list[int]
    said: list[int]
    is_guessed: list[bool]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--targets", nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=128)


def measure(arguments: Namespace) -> Result:
    work = load_questions(str(WORK))
    result: Result = {}
    for target in arguments.targets:
        decoder = SpeculativeDecoder.from_pretrained(target, memory=False)
        result[Path(target).stem] = {
            kind: _bounds([_answered(decoder, question, arguments.tokens) for question in group])
            for kind, group in groupby(work, key=lambda question: question.category)
        }
    return {"targets": result}


def _answered(decoder: SpeculativeDecoder, question: Question, num_tokens: int) -> Answered:
    temperature = 0.7 if question.category == SAMPLED_WORK else 0.0
    prompt = decoder.encode([user_message(question.turns[0], ())])
    params = SamplingParams(temperature=temperature, seed=int(question.name.rpartition("-")[2]))
    said = list(decoder.generate(prompt, params, max_new_tokens=num_tokens).token_ids)
    is_guessed = [False] * len(said)
    assert isinstance(decoder.pair, Pair)
    reader = reader_of(decoder.pair.drafter)
    if isinstance(reader, SameTokenReader) and isinstance(reader.network, OutputLayer):
        tokens = [prompt.token_ids[-1], *said[:-1]]
        read = reader.read(SaidText(prompt, tokens, [{token: 1.0} for token in said], 1.0))
        places = Places.of(read, reader.network.hidden_states(read.token_ids))
        is_right = (places.hidden @ reader.network.output_weight().T).argmax(1)
        first = len(read.token_ids) - len(said)
        for place, right in zip(read.places, is_right == places.wanted[:, 0], strict=True):
            is_guessed[place - first] = bool(right)
    return Answered(list(prompt.token_ids), said, is_guessed)


def _bounds(answers: Sequence[Answered]) -> Result:
    """Returns the tokens a step of all but the first answer."""
    steps: dict[str, int] = defaultdict(int)
    for number, answer in enumerate(answers[1:], 1):
        earlier = [[*each.before[-NUM_CONTEXT:], *each.said] for each in answers[:number]]
        nothing = [0] * len(answer.said)
        chains = _chains(answer.is_guessed)
        own = _copied([], answer)
        both = _copied(earlier, answer)
        for name, copied, guessed in (
            ("text", own, nothing),
            ("text and memory", both, nothing),
            ("drafter and text", own, chains),
            ("drafter, text and memory", both, chains),
        ):
            steps[name] += _fewest_steps([max(*pair) for pair in zip(copied, guessed, strict=True)])
    num_tokens = sum(len(answer.said) for answer in answers[1:])
    has_drafter = any(any(answer.is_guessed) for answer in answers)
    return {
        "num_tokens": num_tokens,
        "tokens_per_step": {
            name: round(num_tokens / num_steps, 3)
            for name, num_steps in steps.items()
            if has_drafter or not name.startswith("drafter")
        },
    }


def _chains(is_guessed: Sequence[bool]) -> list[int]:
    """Returns for each token how many in a row are the drafter's first choice from there on."""
    return [
        next((n for n, right in enumerate(following) if not right), len(following))
        for following in (
            is_guessed[begin : begin + LONGEST_CHAIN] for begin in range(len(is_guessed))
        )
    ]


def _copied(earlier: Sequence[list[int]], answer: Answered) -> list[int]:
    """Returns for each token of an answer how many can be copied from there on."""
    whole = [*answer.before, *answer.said]
    first = len(answer.before)
    places: dict[tuple[int, ...], list[tuple[list[int], int]]] = defaultdict(list)
    for text in earlier:
        for place in range(RUN, len(text)):
            places[tuple(text[place - RUN : place])].append((text, place))
    longest: list[int] = []
    for place in range(RUN, len(whole)):
        found = places[tuple(whole[place - RUN : place])]
        if place >= first:
            runs = (_num_alike(text, begin, whole, place) for text, begin in found)
            longest.append(max(runs, default=0))
        found.append((whole, place))
    return longest


def _num_alike(text: Sequence[int], begin: int, whole: Sequence[int], place: int) -> int:
    """Counts tokens that are the same from two places on; copies may go on in what they copied."""
    num = 0
    while place + num < len(whole) and begin + num < len(text):
        if text[begin + num] != whole[place + num]:
            break
        num += 1
    return num


def _fewest_steps(drafted: Sequence[int]) -> int:
    """Returns how many steps an answer takes: each gives tokens drafted, as many as suits, and one.

    Args:
        drafted: how many can be drafted before each token.
    """
    fewest = [0] * (len(drafted) + 1)
    for begin in reversed(range(len(drafted))):
        end = min(begin + drafted[begin] + 1, len(drafted))
        fewest[begin] = 1 + min(fewest[begin + 1 : end + 1])
    return fewest[0]


def show(result: Result) -> None:
    for target, kinds in result["targets"].items():
        names = list(next(iter(kinds.values()))["tokens_per_step"])
        print_table(
            f"Tokens a step of an oracle, {target}",
            ["", *names],
            [
                [kind, *(f"{found['tokens_per_step'][name]:.2f}" for name in names)]
                for kind, found in kinds.items()
            ],
        )


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
