"""Intervals for ratios of sums over questions, by drawing the questions again."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: from all questions.
        low: the end of the interval that 2.5 % of the resamples are below.
        high: the end that 2.5 % are above.
    """

    value: float
    low: float
    high: float


def bootstrap_rate(
    amounts: Float[np.ndarray, " questions"], seconds: Float[np.ndarray, " questions"]
) -> Estimate | None:
    """Returns amount per second with its interval; None if there was no time at all."""
    return bootstrap_ratio(amounts, seconds, np.ones_like(amounts), np.ones_like(amounts))


def bootstrap_ratio(
    amounts: Float[np.ndarray, " questions"],
    seconds: Float[np.ndarray, " questions"],
    reference_amounts: Float[np.ndarray, " questions"],
    reference_seconds: Float[np.ndarray, " questions"],
) -> Estimate | None:
    """Returns how many times as fast as a reference, with its interval (Efron 1979).

    The bootstrap is paired: a resample takes the same questions for both, so what makes a question
    slow for all methods cancels out. Intervals say how much the result depends on the questions,
    and nothing about another machine.

    Returns:
        None if one of them has no seconds or the reference no amount.
    """
    if not (seconds.sum() > 0 and reference_seconds.sum() > 0 and reference_amounts.sum() > 0):
        return None
    chance = np.random.default_rng(0)
    picks = chance.integers(0, len(amounts), size=(NUM_RESAMPLES, len(amounts)))
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = amounts[picks].sum(1) / seconds[picks].sum(1)
        reference_rates = reference_amounts[picks].sum(1) / reference_seconds[picks].sum(1)
        ratios = rates / reference_rates
    ratios = ratios[np.isfinite(ratios)]
    low, high = np.percentile(ratios, [2.5, 97.5]) if len(ratios) else (np.nan, np.nan)
    value = (amounts.sum() / seconds.sum()) / (reference_amounts.sum() / reference_seconds.sum())
    return Estimate(float(value), float(low), float(high))
