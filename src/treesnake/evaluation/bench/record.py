"""What is kept of a run: one line of JSON for each question, method and repeat."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from treesnake.outcome import Step
from treesnake.shape import Shape, ShapeKind, is_off


@dataclass(frozen=True)
class Tally:
    """How often something was offered and how often it was taken.

    Attributes:
        offered: per kind, such as per depth or per rank.
        taken: per kind.
    """

    offered: tuple[int, ...] = ()
    taken: tuple[int, ...] = ()


@dataclass(frozen=True)
class ShapeUse:
    """What steps of one kind of shape did.

    Attributes:
        num_steps: how many.
        num_emitted: new tokens.
        seconds: of these steps.
    """

    num_steps: int
    num_emitted: int
    seconds: float


@dataclass(frozen=True)
class ShownStep:
    """A step with its whole tree, for the report.

    Attributes:
        shape: as text.
        tokens: per node, the anchor's first.
        parents: per node.
        path: the accepted nodes.
        emitted: the new tokens.
        draft_s: seconds of drafting.
        score_s: seconds of scoring.
        probs: per node, the drafter's probability of its path where it has one; -1 where not.
        texts: per node, its token as text.
        emitted_texts: the new tokens as text.
        stream_weights: what each stream of a mixture counted for; empty if there was none.
    """

    shape: str
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    path: tuple[int, ...]
    emitted: tuple[int, ...]
    draft_s: float
    score_s: float
    probs: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    emitted_texts: tuple[str, ...] = ()
    stream_weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StepRecord:
    """The steps of one text, added up.

    Attributes:
        num_drafted: drafted tokens.
        num_accepted: drafted tokens that became text.
        draft_s: seconds of drafting, and so on.
        score_s: of scoring.
        accept_s: of accepting.
        commit_s: of committing.
        by_position: for each depth from 1: steps that drafted there, and that accepted there.
        by_rank: for each rank among siblings: nodes of that rank below accepted ones, and how many
            of these were accepted.
        shapes: by kind of shape.
    """

    num_drafted: int
    num_accepted: int
    draft_s: float
    score_s: float
    accept_s: float
    commit_s: float
    by_position: Tally
    by_rank: Tally
    shapes: dict[str, ShapeUse]


@dataclass(frozen=True)
class TurnRecord:
    """The answer to one turn.

    Attributes:
        num_prompt: tokens of the prompt.
        num_new: new tokens.
        num_emissions: how often tokens came out: steps of ours, forward passes of others.
        num_first: tokens of the first emission.
        first_s: seconds from the call to the first emission.
        total_s: seconds from the call to the end.
        token_ids: the new tokens.
        steps: of our own methods.
        late_prefill_s: seconds after the first emission in which our drafter read the prompt.
        shown: every step, if it was asked for.
    """

    num_prompt: int
    num_new: int
    num_emissions: int
    num_first: int
    first_s: float
    total_s: float
    token_ids: tuple[int, ...] = ()
    steps: StepRecord | None = None
    shown: tuple[ShownStep, ...] = ()
    late_prefill_s: float = 0.0


@dataclass(frozen=True)
class RunRecord:
    """A method on a question.

    Attributes:
        pair: its name.
        method: its name.
        task: its name.
        question: its name; "*" if the method could not be made ready for any.
        category: of the question.
        sampling: its name.
        repeat: which one.
        turns: what came out.
        weights_bytes: of all models that the method uses.
        growth_bytes: by how much memory grew at its peak, beside weights and what was there before;
            None where that is not known.
        target_bytes: the state of the target at the end.
        drafter_bytes: the state of the drafter at the end.
        asked: how the question begins, if its steps are shown.
        pictures: small copies of the images that it is about, then too, as data URLs.
        error: why there is nothing.
    """

    pair: str
    method: str
    task: str
    question: str
    category: str
    sampling: str
    repeat: int
    turns: tuple[TurnRecord, ...] = ()
    weights_bytes: int | None = None
    growth_bytes: int | None = None
    target_bytes: int | None = None
    drafter_bytes: int | None = None
    asked: str | None = None
    pictures: tuple[str, ...] = ()
    error: str | None = None
    kind: Literal["run"] = "run"

    @property
    def key(self) -> tuple[str, ...]:
        """What no two records share."""
        asked = (self.pair, self.task, self.question, self.sampling, str(self.repeat))
        return (self.kind, self.method, *asked)


@dataclass(frozen=True)
class DrafterRecord:
    """A drafter's probabilities beside the target's, along a text of the target.

    Attributes:
        pair: its name.
        drafter: its name.
        task: its name.
        question: its name.
        category: of the question.
        num_positions: how many distributions were compared.
        total_variation: the sum over positions.
        num_same_choice: positions where both hold the same token most probable.
        bin_counts: per tenth of the drafter's highest probability, the number of positions.
        bin_confidence: per tenth, the sum of these probabilities.
        bin_target_probs: per tenth, the sum of the target's probabilities of the same tokens.
        error: why there is nothing.
    """

    pair: str
    drafter: str
    task: str
    question: str
    category: str
    num_positions: int = 0
    total_variation: float = 0.0
    num_same_choice: int = 0
    bin_counts: tuple[int, ...] = ()
    bin_confidence: tuple[float, ...] = ()
    bin_target_probs: tuple[float, ...] = ()
    error: str | None = None
    kind: Literal["agreement"] = "agreement"

    @property
    def key(self) -> tuple[str, ...]:
        """What no two records share."""
        return (self.kind, self.pair, self.drafter, self.task, self.question)


Record = RunRecord | DrafterRecord


def as_line(record: Record) -> dict[str, Any]:
    """Returns a record as plain data without what is None."""
    return _without_none(asdict(record))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return value


def sum_steps(steps: Sequence[Step]) -> StepRecord:
    """Adds up the steps of a text."""
    return StepRecord(
        num_drafted=sum(step.num_drafted for step in steps),
        num_accepted=sum(step.num_accepted for step in steps),
        draft_s=sum(step.seconds.draft_s for step in steps),
        score_s=sum(step.seconds.score_s for step in steps),
        accept_s=sum(step.seconds.accept_s for step in steps),
        commit_s=sum(step.seconds.commit_s for step in steps),
        by_position=_tally_positions(steps),
        by_rank=_tally_ranks(steps),
        shapes=_tally_shapes(steps),
    )


def to_shown_step(step: Step) -> ShownStep:
    """Keeps everything of a step that a reader may want to see."""
    probs = step.node_probs or ()
    return ShownStep(
        shape=str(step.shape),
        tokens=tuple(step.tree.tokens),
        parents=step.tree.parents,
        path=step.acceptance.path,
        emitted=step.emitted,
        draft_s=step.seconds.draft_s,
        score_s=step.seconds.score_s,
        probs=tuple(-1.0 if prob != prob else round(prob, 4) for prob in probs),  # nan: unknown
        stream_weights={
            name: round(weight, 4) for name, weight in (step.stream_weights or {}).items()
        },
    )


def with_texts(turn: TurnRecord, decode: Callable[[Sequence[int]], str]) -> TurnRecord:
    """Returns a turn whose shown steps have their tokens as text."""

    def texts(tokens: Sequence[int]) -> tuple[str, ...]:
        return tuple(decode([token]) for token in tokens)

    shown = tuple(
        replace(step, texts=texts(step.tokens), emitted_texts=texts(step.emitted))
        for step in turn.shown
    )
    return replace(turn, shown=shown)


def kind_of_shape(shape: Shape) -> str:
    """Names a shape as far as it makes sense to add up its steps."""
    if shape.num_drafted == 0 or is_off(shape):
        return "off"
    match shape.kind:
        case ShapeKind.FIXED_TREE:
            return f"tree of {_rounded(shape.num_drafted)}"
        case ShapeKind.PRICED:
            return "by confidence"
        case _:
            return str(shape)


def _rounded(number: int) -> str:
    """Returns the stretch between powers of two that a number is in."""
    low = 1 << (number.bit_length() - 1)
    return "1 node" if low == 1 else f"{low} to {2 * low - 1} nodes"


def _tally_positions(steps: Sequence[Step]) -> Tally:
    deepest = max((step.tree.depth for step in steps), default=0)
    offered, taken = [0] * deepest, [0] * deepest
    for step in steps:
        for position in range(step.tree.depth):
            offered[position] += 1
            taken[position] += position < step.num_accepted
    return Tally(tuple(offered), tuple(taken))


def _tally_ranks(steps: Sequence[Step]) -> Tally:
    widest = max((len(children) for step in steps for children in step.tree.children), default=0)
    offered, taken = [0] * widest, [0] * widest
    for step in steps:
        path = step.acceptance.path
        for node, accepted in zip(path, (*path[1:], None), strict=True):
            for rank, child in enumerate(step.tree.children[node]):
                offered[rank] += 1
                taken[rank] += child == accepted
    return Tally(tuple(offered), tuple(taken))


def _tally_shapes(steps: Sequence[Step]) -> dict[str, ShapeUse]:
    uses: dict[str, list[Step]] = {}
    for step in steps:
        uses.setdefault(kind_of_shape(step.shape), []).append(step)
    return {
        kind: ShapeUse(
            len(group),
            sum(len(step.emitted) for step in group),
            sum(step.seconds.total_s for step in group),
        )
        for kind, group in uses.items()
    }
