"""What runs a prompt and says what it took."""

from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, runtime_checkable

from treesnake.continuation import continue_text
from treesnake.decoder import SpeculativeDecoder
from treesnake.drafters.composite import CompositeDrafter
from treesnake.drafters.memory import MemoryDrafter
from treesnake.evaluation.bench.record import TurnRecord, sum_steps, to_shown_step
from treesnake.evaluation.memory import held_bytes
from treesnake.memory.text_memory import TextMemory
from treesnake.prompt import Prompt
from treesnake.protocols import SharedSearch
from treesnake.sampling import SamplingParams


@dataclass(frozen=True)
class MeasuredTurn:
    """What a runner made of a prompt.

    Attributes:
        turn: what came out and what it took.
        weights_bytes: of all models, what they made of their weights included.
        target_bytes: the state of the target at the end, where it is known.
        drafter_bytes: the state of the drafter.
    """

    turn: TurnRecord
    weights_bytes: int
    target_bytes: int | None = None
    drafter_bytes: int | None = None


@runtime_checkable
class Runner(Protocol):
    """A method that is ready to run."""

    def run(
        self, prompt: Prompt, params: SamplingParams, max_new_tokens: int, *, is_shown: bool
    ) -> MeasuredTurn:
        """Continues a prompt; `is_shown` keeps every step."""
        ...


class SpeculativeRunner:
    """Our own decoding: the loop itself, so that no text is made while the clock runs.

    Every prompt has sessions of its own. What the search learns is about the pair, so it goes from
    prompt to prompt, as in a server.

    Args:
        decoder: target, drafter and end tokens.
        search: chooses the trees, also of seeded samples.
        memory: of earlier answers; None draws on each text alone.
    """

    def __init__(
        self, decoder: SpeculativeDecoder, search: SharedSearch, memory: TextMemory | None = None
    ) -> None:
        self._decoder = decoder
        self._search = search
        self._memory = memory

    def with_memory(self, memory: TextMemory) -> "SpeculativeRunner":
        """Returns the same method with a memory."""
        return SpeculativeRunner(self._decoder, self._search, memory)

    def run(
        self, prompt: Prompt, params: SamplingParams, max_new_tokens: int, *, is_shown: bool
    ) -> MeasuredTurn:
        """Continues a prompt in a new session."""
        target, drafter = self._decoder.pair.new_sessions()
        recalling = None if self._memory is None else MemoryDrafter(self._memory)
        if recalling is not None:
            drafter = CompositeDrafter(drafter, recalling)
        emissions = []
        steps = []
        started = perf_counter()
        for step in continue_text(
            target,
            drafter,
            prompt,
            params,
            search=self._search.new_session(),
            max_new_tokens=max_new_tokens,
            end_token_ids=self._decoder.end_token_ids,
        ).steps:
            emissions.append(perf_counter() - started)
            steps.append(step)
        if recalling is not None:
            recalling.remember()
        total_s = perf_counter() - started
        tokens = tuple(token for step in steps for token in step.emitted)
        turn = TurnRecord(
            num_prompt=len(prompt),
            num_new=len(tokens),
            num_emissions=len(steps),
            num_first=len(steps[0].emitted) if steps else 0,
            first_s=emissions[0] if emissions else total_s,
            total_s=total_s,
            token_ids=tokens,
            steps=sum_steps(steps),
            shown=tuple(map(to_shown_step, steps)) if is_shown else (),
            late_prefill_s=sum(step.seconds.prefill_s for step in steps[1:]),
        )
        return MeasuredTurn(
            turn,
            held_bytes(self._decoder.pair),
            held_bytes(target, self._decoder.pair),
            held_bytes(drafter, (self._decoder.pair, self._memory)),
        )
