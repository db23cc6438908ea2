"""What came of it: one acceptance, one step, one generation, and the counts that users ask for."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from statistics import median

from treesnake.logprobs import TokenLogprobs
from treesnake.shape import Shape
from treesnake.tree import TokenTree

LEAST_PLAIN_STEPS = 3
"""Steps that score one node, from which the cost of a plain step is estimated."""


class FinishReason(StrEnum):
    """Why a generation ended."""

    END_TOKEN = "end_token"
    STOP_STRING = "stop_string"
    STOP_RULE = "stop_rule"
    LENGTH = "length"
    CONTEXT = "context"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Acceptance:
    """What an acceptance rule decided.

    Attributes:
        path: the nodes from the anchor to the last accepted one.
        token: the target's own token after that path: *recovered* where a drafted token was
            rejected, *bonus* where the path ended in a leaf.
    """

    path: tuple[int, ...]
    token: int

    def emitted(self, tree: TokenTree) -> list[int]:
        """Returns the accepted tokens and the target's own one after them."""
        return [tree.tokens[node] for node in self.path[1:]] + [self.token]


@dataclass(frozen=True)
class StepSeconds:
    """Where the time of a step went; on a GPU a part includes its synchronisations.

    Attributes:
        draft_s: seconds of work on drafting; so are the next three of their parts.
        score_s: on scoring.
        accept_s: on accepting.
        commit_s: on committing.
        queued_s: seconds in a queue, while an engine ran passes of other texts.
        prefill_s: seconds of work before the step, in which a model read the prompt: the target
            before the first step, the drafter before the second. They are part of no sum here.
    """

    draft_s: float
    score_s: float
    accept_s: float
    commit_s: float
    queued_s: float = 0.0
    prefill_s: float = 0.0

    @property
    def work_s(self) -> float:
        """The seconds of work: what the step would have taken without other texts."""
        return self.draft_s + self.score_s + self.accept_s + self.commit_s

    @property
    def total_s(self) -> float:
        """The wall-clock seconds of the whole step, in a queue or at work."""
        return self.work_s + self.queued_s


@dataclass(frozen=True, eq=False)
class Step:
    """One round of drafting, scoring, accepting and committing.

    Attributes:
        shape: what the search chose, after clipping to the room that was left.
        tree: what was drafted.
        acceptance: what the rule decided.
        emitted: the tokens that became output; fewer than accepted where a stop rule cut them.
        seconds: where the time went.
        finish_reason: set on the last step if a stop rule ended it.
        node_probs: those of the draft.
        num_expanded: that of the draft.
        stream_weights: those of the draft.
        logprobs: what the target said of each emitted token, where that was asked for.
        num_texts: the texts that shared the pass in which it was scored, its own text included.
    """

    shape: Shape
    tree: TokenTree
    acceptance: Acceptance
    emitted: tuple[int, ...]
    seconds: StepSeconds
    finish_reason: FinishReason | None = None
    node_probs: tuple[float, ...] | None = None
    num_expanded: tuple[int, ...] | None = None
    stream_weights: Mapping[str, float] | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    num_texts: int = 1

    @property
    def num_drafted(self) -> int:
        """The number of drafted tokens."""
        return self.tree.num_drafted

    @property
    def num_accepted(self) -> int:
        """The number of drafted tokens that became output."""
        return min(len(self.emitted), len(self.acceptance.path) - 1)


@dataclass(frozen=True, eq=False)
class Generation:
    """A finished generation and its statistics.

    Attributes:
        token_ids: the new tokens, an end token included.
        text: what the new tokens add to the text of the prompt, without special tokens and without
            the stop string; None where no tokenizer was at hand.
        steps: each step.
        finish_reason: why it ended.
    """

    token_ids: tuple[int, ...]
    text: str | None
    steps: tuple[Step, ...]
    finish_reason: FinishReason

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """What the target said of each new token; None where nobody asked, or there is none."""
        return tuple(each for step in self.steps for each in step.logprobs or ()) or None

    @property
    def num_drafted(self) -> int:
        """The number of drafted tokens."""
        return sum(step.num_drafted for step in self.steps)

    @property
    def num_accepted(self) -> int:
        """The number of drafted tokens that became output."""
        return sum(step.num_accepted for step in self.steps)

    @property
    def num_emitted(self) -> int:
        """The number of new tokens."""
        return len(self.token_ids)

    @property
    def mean_tokens_per_step(self) -> float:
        """New tokens per step, the target's own one counted; 1 is plain decoding."""
        return _ratio(self.num_emitted, len(self.steps))

    @property
    def mean_accepted_per_step(self) -> float:
        """Accepted drafted tokens per step, without the target's own one."""
        return _ratio(self.num_accepted, len(self.steps))

    @cached_property
    def acceptance_by_position(self) -> list[float]:
        """For each depth, how often a node there was accepted where one was drafted.

        Entry i is about depth i + 1, among the steps that drafted that deep.
        """
        return acceptance_by_position(self.steps)

    @property
    def stream_weights(self) -> dict[str, float]:
        """What each stream of a mixture counted for, on average over the steps it drafted in."""
        drafted = [step.stream_weights for step in self.steps if step.stream_weights is not None]
        names = drafted[0] if drafted else ()
        return {name: _ratio(sum(each[name] for each in drafted), len(drafted)) for name in names}

    @property
    def prefill_s(self) -> float:
        """The seconds in which the models read the prompt, before the first two steps."""
        return sum(step.seconds.prefill_s for step in self.steps)

    @property
    def decode_s(self) -> float:
        """The seconds of all steps."""
        return sum(step.seconds.total_s for step in self.steps)

    @property
    def estimated_speedup(self) -> float | None:
        """How many times as fast as plain decoding, estimated from the steps of this generation.

        A plain step is taken to cost what the median step that scored a single node cost, without
        its drafting, and every other step what the median of those that scored as many nodes did,
        and its own drafting: so a pause of the machine is neither gain nor loss. None if fewer than
        `LEAST_PLAIN_STEPS` steps scored a single node.
        """
        undrafted: defaultdict[int, list[float]] = defaultdict(list)
        for step in self.steps:
            undrafted[len(step.tree)].append(step.seconds.work_s - step.seconds.draft_s)
        if len(undrafted[1]) < LEAST_PLAIN_STEPS:
            return None
        work_s = sum(step.seconds.draft_s for step in self.steps)
        work_s += sum(len(alike) * median(alike) for alike in undrafted.values())
        return _ratio(self.num_emitted * median(undrafted[1]), work_s)

    @property
    def tokens_per_s(self) -> float:
        """New tokens per second of decoding, the prefill not counted."""
        return _ratio(self.num_emitted, self.decode_s)


def acceptance_by_position(steps: Sequence[Step]) -> list[float]:
    """Returns for each depth the share of steps that accepted, of those that drafted there."""
    drafted: list[int] = []
    accepted: list[int] = []
    for step in steps:
        depth = step.tree.depth
        missing = depth - len(drafted)
        drafted += [0] * missing
        accepted += [0] * missing
        for position in range(depth):
            drafted[position] += 1
            accepted[position] += position < step.num_accepted
    return [_ratio(part, whole) for part, whole in zip(accepted, drafted, strict=True)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
