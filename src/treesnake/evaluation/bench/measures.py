"""The measures of a method over some questions; docs/guides/evaluation.md defines each of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from treesnake.evaluation.agreement import binned_calibration_error
from treesnake.evaluation.bench.record import (
    DrafterRecord,
    RunRecord,
    StepRecord,
    TurnRecord,
)
from treesnake.evaluation.bootstrap import Estimate, bootstrap_rate, bootstrap_ratio


@dataclass(frozen=True)
class PhaseSeconds:
    """Mean seconds per step by phase."""

    draft_s: float
    score_s: float
    accept_s: float
    commit_s: float


@dataclass(frozen=True)
class Measures:
    """What a method did on some questions. None stands for what it does not have.

    Attributes:
        num_questions: how many.
        num_new: new tokens.
        tokens_per_s: of decoding: tokens after the first emission per second after it, without the
            seconds in which a drafter reads the prompt.
        tokens_per_s_with_prefill: all new tokens per second from the call on.
        speedup: `tokens_per_s` over that of the reference on the same questions.
        speedup_with_prefill: the same with prefill.
        first_token_s: mean seconds from the call to the first emission.
        tokens_per_step: new tokens per emission, the target's own counted.
        accepted_per_step: drafted tokens that became text, per step.
        drafted_per_step: drafted tokens per step.
        acceptance_by_position: for each depth, of the steps that drafted there, how many accepted.
        acceptance_by_rank: for each rank among siblings, of the nodes below accepted ones, how many
            were accepted.
        phases: seconds per step.
        time_by_shape: the share of the time of all steps, by kind of shape.
        weights_bytes: of all models that the method uses.
        growth_bytes: the largest growth of memory.
        target_bytes: the largest state of the target.
        drafter_bytes: the largest state of the drafter.
        same_as_reference: on how many questions the tokens were those of the reference.
    """

    num_questions: int
    num_new: int
    tokens_per_s: Estimate | None
    tokens_per_s_with_prefill: Estimate | None
    speedup: Estimate | None
    speedup_with_prefill: Estimate | None
    first_token_s: float
    tokens_per_step: float
    accepted_per_step: float | None
    drafted_per_step: float | None
    acceptance_by_position: tuple[float, ...]
    acceptance_by_rank: tuple[float, ...]
    phases: PhaseSeconds | None
    time_by_shape: dict[str, float]
    weights_bytes: int | None
    growth_bytes: int | None
    target_bytes: int | None
    drafter_bytes: int | None
    same_as_reference: int | None


def measure(runs: Sequence[RunRecord], reference: Sequence[RunRecord]) -> Measures:
    """Returns the measures of a method.

    Args:
        runs: of the method, none of them failed, at least one.
        reference: of what it is compared with; questions that one of them lacks do not count.
    """
    turns = [turn for run in runs for turn in run.turns]
    steps = [turn.steps for turn in turns if turn.steps is not None]
    num_emissions = sum(turn.num_emissions for turn in turns)
    ours, theirs = _shared(runs, reference)
    return Measures(
        num_questions=len({_question(run) for run in runs}),
        num_new=sum(turn.num_new for turn in turns),
        tokens_per_s=_rate(runs, _decoded),
        tokens_per_s_with_prefill=_rate(runs, _whole),
        speedup=_ratio(ours, theirs, _decoded),
        speedup_with_prefill=_ratio(ours, theirs, _whole),
        first_token_s=float(np.mean([turn.first_s for turn in turns])),
        tokens_per_step=_divide(sum(turn.num_new for turn in turns), num_emissions),
        accepted_per_step=_per_step(steps, num_emissions, lambda step: step.num_accepted),
        drafted_per_step=_per_step(steps, num_emissions, lambda step: step.num_drafted),
        acceptance_by_position=_shares(
            [step.by_position.offered for step in steps], [step.by_position.taken for step in steps]
        ),
        acceptance_by_rank=_shares(
            [step.by_rank.offered for step in steps], [step.by_rank.taken for step in steps]
        ),
        phases=_phases(steps, num_emissions),
        time_by_shape=_time_by_shape(steps),
        weights_bytes=_largest(run.weights_bytes for run in runs),
        growth_bytes=_largest(run.growth_bytes for run in runs),
        target_bytes=_largest(run.target_bytes for run in runs),
        drafter_bytes=_largest(run.drafter_bytes for run in runs),
        same_as_reference=_count_same(ours, theirs),
    )


@dataclass(frozen=True)
class AgreementMeasures:
    """How alike a drafter and the target are, at temperature 1 along texts of the target.

    Attributes:
        num_positions: how many distributions were compared.
        total_variation: the mean; 1 minus it is how often one drafted token is accepted.
        same_choice: how often both hold the same token most probable.
        calibration_error: see `binned_calibration_error`.
        confidence: mean highest probability in each tenth, None where there is none.
        target_probs: the target's mean probability of these tokens.
        counts: the number of positions in each tenth.
    """

    num_positions: int
    total_variation: float
    same_choice: float
    calibration_error: float
    confidence: tuple[float | None, ...]
    target_probs: tuple[float | None, ...]
    counts: tuple[int, ...]


def measure_agreement(records: Sequence[DrafterRecord]) -> AgreementMeasures | None:
    """Returns the measures of a drafter; None if nothing was compared."""
    found = [record for record in records if record.error is None and record.num_positions]
    if not found:
        return None
    num_positions = sum(record.num_positions for record in found)
    counts = np.sum([record.bin_counts for record in found], axis=0)
    confidence = np.sum([record.bin_confidence for record in found], axis=0)
    target_probs = np.sum([record.bin_target_probs for record in found], axis=0)
    return AgreementMeasures(
        num_positions=num_positions,
        total_variation=sum(record.total_variation for record in found) / num_positions,
        same_choice=sum(record.num_same_choice for record in found) / num_positions,
        calibration_error=binned_calibration_error(
            counts.tolist(), confidence.tolist(), target_probs.tolist()
        ),
        confidence=_means(confidence, counts),
        target_probs=_means(target_probs, counts),
        counts=tuple(counts.tolist()),
    )


Amount = Callable[[TurnRecord], tuple[float, float]]
"""Takes a turn and returns tokens and the seconds that they took."""


def _decoded(turn: TurnRecord) -> tuple[float, float]:
    return turn.num_new - turn.num_first, turn.total_s - turn.first_s - turn.late_prefill_s


def _whole(turn: TurnRecord) -> tuple[float, float]:
    return turn.num_new, turn.total_s


def _question(run: RunRecord) -> tuple[str, ...]:
    return (run.pair, run.task, run.question, run.sampling)


def _shared(
    runs: Sequence[RunRecord], reference: Sequence[RunRecord]
) -> tuple[list[RunRecord], list[RunRecord]]:
    """Returns the runs of both on what both answered."""
    common = {(_question(run), run.repeat) for run in runs}
    common &= {(_question(run), run.repeat) for run in reference}
    ours = [run for run in runs if (_question(run), run.repeat) in common]
    theirs = [run for run in reference if (_question(run), run.repeat) in common]
    return ours, theirs


def _sums(
    runs: Sequence[RunRecord], amount: Amount
) -> tuple[Float[np.ndarray, " questions"], Float[np.ndarray, " questions"]]:
    """Adds up turns and repeats of each question, in one order for all methods."""
    sums: dict[tuple[str, ...], tuple[float, float]] = {}
    for run in runs:
        for turn in run.turns:
            tokens, seconds = amount(turn)
            before = sums.get(_question(run), (0.0, 0.0))
            sums[_question(run)] = (before[0] + tokens, before[1] + seconds)
    ordered = np.array([sums[key] for key in sorted(sums)], dtype=float).reshape(-1, 2)
    return ordered[:, 0], ordered[:, 1]


def _rate(runs: Sequence[RunRecord], amount: Amount) -> Estimate | None:
    return bootstrap_rate(*_sums(runs, amount))


def _ratio(
    runs: Sequence[RunRecord], reference: Sequence[RunRecord], amount: Amount
) -> Estimate | None:
    if not runs:
        return None
    return bootstrap_ratio(*_sums(runs, amount), *_sums(reference, amount))


def _count_same(runs: Sequence[RunRecord], reference: Sequence[RunRecord]) -> int | None:
    """Counts equal texts; None where nothing was compared."""
    if not runs:
        return None
    texts = {
        (_question(run), run.repeat): [turn.token_ids for turn in run.turns] for run in reference
    }
    differing = {
        _question(run)
        for run in runs
        if texts[_question(run), run.repeat] != [turn.token_ids for turn in run.turns]
    }
    return len({_question(run) for run in runs} - differing)


def _per_step(
    steps: Sequence[StepRecord], num_steps: int, count: Callable[[StepRecord], int]
) -> float | None:
    return _divide(sum(map(count, steps)), num_steps) if steps else None


def _phases(steps: Sequence[StepRecord], num_steps: int) -> PhaseSeconds | None:
    if not steps:
        return None
    return PhaseSeconds(
        draft_s=_divide(sum(step.draft_s for step in steps), num_steps),
        score_s=_divide(sum(step.score_s for step in steps), num_steps),
        accept_s=_divide(sum(step.accept_s for step in steps), num_steps),
        commit_s=_divide(sum(step.commit_s for step in steps), num_steps),
    )


def _time_by_shape(steps: Sequence[StepRecord]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for step in steps:
        for kind, use in step.shapes.items():
            seconds[kind] = seconds.get(kind, 0.0) + use.seconds
    return _normalized(dict(sorted(seconds.items(), key=lambda item: -item[1])))


def _normalized(amounts: Mapping[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {name: _divide(amount, total) for name, amount in amounts.items()}


def _shares(offered: Sequence[Sequence[int]], taken: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Returns taken over offered for each depth or rank, summed over texts."""
    length = max(map(len, offered), default=0)
    totals = np.zeros((2, length))
    for whole, part in zip(offered, taken, strict=True):
        totals[0, : len(whole)] += whole
        totals[1, : len(part)] += part
    return tuple(_divide(part, whole) for whole, part in totals.T.tolist())


def _means(
    sums: Float[np.ndarray, " bins"], counts: Int[np.ndarray, " bins"]
) -> tuple[float | None, ...]:
    return tuple(
        total / count if count else None
        for total, count in zip(sums.tolist(), counts.tolist(), strict=True)
    )


def _largest(sizes: Iterable[int | None]) -> int | None:
    return max((size for size in sizes if size is not None), default=None)


def _divide(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
