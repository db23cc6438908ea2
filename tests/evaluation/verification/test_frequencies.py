"""The statistics behind verification."""

import numpy as np
import pytest

from treesnake.evaluation.verification.frequencies import (
    Counts,
    chi_square_tail,
    compare_frequencies,
    detectable_variation,
)

PROBS = np.array([0.4, 0.3, 0.2, 0.1])
LABELS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("value", "degrees", "noncentrality", "tail"),
    [(3.841, 1, 0.0, 0.05), (18.307, 10, 0.0, 0.05), (23.209, 10, 0.0, 0.01), (0.0, 3, 2.0, 1.0)],
)
def test_tails_are_those_of_printed_tables(
    value: float, degrees: int, noncentrality: float, tail: float
) -> None:
    assert chi_square_tail(value, degrees, noncentrality) == pytest.approx(tail, abs=1e-4)


def test_the_noncentral_tail_is_that_of_draws() -> None:
    draws = np.random.default_rng(0).noncentral_chisquare(5, 7.0, size=100_000)
    for value in (5.0, 12.0, 25.0):
        assert chi_square_tail(value, 5, 7.0) == pytest.approx((draws > value).mean(), abs=0.01)


def test_true_frequencies_pass_and_false_ones_do_not() -> None:
    chance = np.random.default_rng(0)
    true = Counts(chance.multinomial(400, PROBS), PROBS, LABELS)
    false = Counts(chance.multinomial(400, PROBS[::-1]), PROBS, LABELS)
    assert compare_frequencies("true", [true], 0.01, chance).is_passed
    test = compare_frequencies("false", [true, false], 0.01, chance)
    assert not test.is_passed
    assert test.p_value == pytest.approx(1e-4)
    assert test.most_deviant[0].label in ("a", "d")
    assert test.num_cells == 8


def test_the_false_alarm_rate_is_exact_for_counts_of_one_digit() -> None:
    """Where the usual approximation by a chi-square distribution is not to be trusted."""
    chance = np.random.default_rng(0)
    probs = np.array([0.9, 0.08, 0.015, 0.005])
    alarms = [
        not compare_frequencies(
            "", [Counts(chance.multinomial(20, probs), probs, LABELS)], 0.05, chance
        ).is_passed
        for _ in range(150)
    ]
    assert sum(alarms) <= 0.05 * 150 + 3 * (0.05 * 0.95 * 150) ** 0.5


def test_the_detectable_variation_is_detected_nine_times_in_ten() -> None:
    """In its worst direction, which spreads over all cells in proportion to their probabilities."""
    chance = np.random.default_rng(0)
    variation = detectable_variation(500, degrees=3, alpha=0.05)
    probs = np.array([0.5, 0.2, 0.2, 0.1])
    shifted = probs * np.array([1 + 2 * variation, *[1 - 2 * variation] * 3])
    assert np.abs(shifted - probs).sum() / 2 == pytest.approx(variation)
    found = [
        not compare_frequencies(
            "", [Counts(chance.multinomial(500, shifted), probs, LABELS)], 0.05, chance
        ).is_passed
        for _ in range(100)
    ]
    assert np.mean(found) == pytest.approx(0.9, abs=0.09)


def test_more_samples_detect_less() -> None:
    few, many = (detectable_variation(number, 10, 0.01) for number in (100, 10_000))
    assert few == pytest.approx(10 * many)
    assert detectable_variation(100, 0, 0.01) == 1.0
