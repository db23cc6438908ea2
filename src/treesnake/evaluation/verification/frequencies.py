"""Tests of counts against known probabilities: exact false alarms, stated power."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.evaluation.verification.evidence import CellCount, FrequencyTest

NUM_SIMULATIONS = 9999
POWER = 0.9
NUM_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Counts:
    """How often each cell of a partition was met, and the probability of each.

    Attributes:
        observed: per cell.
        probs: per cell; they sum to 1.
        labels: the cells in words.
        prompt_index: after which prompt, or None.
    """

    observed: Int[np.ndarray, " cells"]
    probs: Float[np.ndarray, " cells"]
    labels: Sequence[str]
    prompt_index: int | None = None

    @property
    def num_samples(self) -> int:
        """The number of draws."""
        return int(self.observed.sum())

    @property
    def expected(self) -> Float[np.ndarray, " cells"]:
        """The mean count per cell."""
        return self.num_samples * self.probs

    def cells(self) -> list[CellCount]:
        """Returns the cells one by one."""
        return [
            CellCount(self.prompt_index, label, int(count), float(mean))
            for label, count, mean in zip(self.labels, self.observed, self.expected, strict=True)
        ]


def compare_frequencies(
    name: str, groups: Sequence[Counts], alpha: float, chance: np.random.Generator
) -> FrequencyTest:
    """Tests whether several independent groups of counts have the probabilities that they should.

    The statistic is Pearson's, summed over the groups. Its distribution is simulated by drawing
    counts from the probabilities themselves, so a correct decoder fails with a probability of at
    most `alpha`, and not only for large counts (Dufour 2006).

    Args:
        name: what was counted.
        groups: counts over cells of positive probability; empty ones tell nothing.
        alpha: the probability of a false alarm.
        chance: draws the simulated counts.
    """
    groups = [group for group in groups if group.num_samples]
    statistic = sum(_pearson(group.observed, group.expected) for group in groups)
    simulated = np.zeros(NUM_SIMULATIONS)
    for group in groups:
        draws = chance.multinomial(group.num_samples, group.probs, size=NUM_SIMULATIONS)
        simulated += _pearson(draws, group.expected)
    num_as_large = int((simulated >= statistic * (1 - 1e-12)).sum())
    num_samples = sum(group.num_samples for group in groups)
    num_cells = sum(len(group.probs) for group in groups)
    cells = [cell for group in groups for cell in group.cells()]
    return FrequencyTest(
        name=name,
        num_samples=num_samples,
        num_cells=num_cells,
        statistic=float(statistic),
        p_value=(1 + num_as_large) / (1 + NUM_SIMULATIONS),
        alpha=alpha,
        detectable_variation=detectable_variation(num_samples, num_cells - len(groups), alpha),
        observed_variation=_mean_variation(groups),
        most_deviant=tuple(sorted(cells, key=lambda cell: -abs(cell.deviation))[:NUM_SHOWN]),
    )


def detectable_variation(num_samples: int, degrees: int, alpha: float) -> float:
    """Returns the total variation that a chi-square test finds with probability 0.9, at the worst.

    A total variation of d makes the statistic's noncentrality at least 4 n d^2, by the inequality
    of Cauchy and Schwarz, however d is spread over the cells; the least noncentrality that is found
    often enough is searched for. Over several groups d is their mean, by that of Jensen. The value
    is 1 where there is nothing to compare.
    """
    if degrees < 1 or num_samples < 1:
        return 1.0
    critical = _bisect(lambda x: chi_square_tail(x, degrees) <= alpha, 0.0, 10.0 * degrees + 100)
    needed = _bisect(
        lambda noncentrality: chi_square_tail(critical, degrees, noncentrality) >= POWER,
        0.0,
        20.0 * degrees + 400,
    )
    return float(min(1.0, (needed / (4 * num_samples)) ** 0.5))


def chi_square_tail(value: float, degrees: int, noncentrality: float = 0.0) -> float:
    """Returns the probability that a chi-square variable exceeds a value.

    The noncentral one is a Poisson mixture of central ones with more degrees of freedom.
    """
    half = noncentrality / 2
    terms = torch.arange(int(half + 12 * (half + 1) ** 0.5) + 12, dtype=torch.float64)
    weights = _poisson(terms, half)
    tails = torch.special.gammaincc(
        degrees / 2 + terms, torch.tensor(value / 2, dtype=torch.float64).expand_as(terms)
    )
    return float((weights * tails).sum())


def _poisson(counts: Float[Tensor, " terms"], mean: float) -> Float[Tensor, " terms"]:
    if mean == 0:
        return (counts == 0).double()
    return (counts * np.log(mean) - mean - torch.lgamma(counts + 1)).exp()


def _pearson(
    observed: Int[np.ndarray, "*draws cells"], expected: Float[np.ndarray, " cells"]
) -> Float[np.ndarray, "*draws"]:
    return np.asarray(((observed - expected) ** 2 / expected).sum(-1))


def _mean_variation(groups: Sequence[Counts]) -> float:
    """Returns the mean over the groups of half the summed difference of frequencies."""
    variations = [
        float(np.abs(group.observed / max(group.num_samples, 1) - group.probs).sum()) / 2
        for group in groups
    ]
    return sum(variations) / max(len(variations), 1)


def _bisect(is_reached: Callable[[float], bool], low: float, high: float) -> float:
    """Returns the least number from which on a condition holds."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if is_reached(middle) else (middle, high)
    return high
