"""Waiting times have the exponential distribution, and belong to seed, place and token."""

from collections import Counter

import numpy as np
import pytest

from treesnake.waiting_times import RARE, WaitingTimes, uniform

TOKENS = np.arange(4001)


def test_times_have_the_exponential_distribution() -> None:
    """The largest distance of the two distribution functions is as small as chance makes it."""
    every = WaitingTimes(5)
    times = np.sort(np.concatenate([every.at(place, TOKENS) for place in range(50)]))
    expected = -np.expm1(-times)
    distance = np.abs(expected - (np.arange(len(times)) + 0.5) / len(times)).max()
    assert distance < 2.2 / len(times) ** 0.5  # once in 10,000 times (Kolmogorov)


def test_a_token_has_its_time_whatever_others_are_asked_for() -> None:
    times = WaitingTimes(3).at(7, TOKENS)
    some = np.array([5, 4000, 0, 17])
    assert (WaitingTimes(3).at(7, some) == times[some]).all()


def test_seeds_and_places_have_times_of_their_own() -> None:
    rows = [
        WaitingTimes(seed).at(place, TOKENS) for seed in (0, 1, 2**63 - 1) for place in (0, 1, 900)
    ]
    correlations = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert np.abs(correlations).max() < 5 / len(TOKENS) ** 0.5


def test_a_seed_means_the_same_everywhere() -> None:
    expected = [0.05987734698164904, 0.5933705596222739, 0.06591277620337765]
    assert uniform(1, 2, np.arange(3)) == pytest.approx(expected, abs=1e-12)


def test_places_move_with_the_text() -> None:
    times = WaitingTimes(4)
    later = times.at(3, TOKENS)
    times.advance(2)
    assert (times.at(1, TOKENS) == later).all()


def test_who_comes_first_has_the_distribution_that_is_asked_for() -> None:
    """Rare tokens, which come together, as well as others."""
    probs = np.array([0.5, 0.0, 0.2, *[RARE / 4] * 3000, 0.3], np.float32)
    times, counts = WaitingTimes(9), Counter[int]()
    for _ in range(4000):
        counts[times.first_come(probs, 0)] += 1
        times.advance(1)
    total = float(probs.sum())
    rare = sum(count for token, count in counts.items() if 3 <= token < 3003)
    expected = {counts[0]: 0.5, counts[2]: 0.2, counts[3003]: 0.3, rare: 3000 * RARE / 4}
    for count, share in expected.items():
        mean = 4000 * share / total
        assert abs(count - mean) < 4 * mean**0.5
    assert counts[1] == 0
    assert len(counts) > 100


def test_impossible_tokens_never_come_first() -> None:
    times = WaitingTimes(2)
    probs = np.zeros(50, np.float32)
    probs[31] = 1
    assert {times.first_come(probs, depth) for depth in range(50)} == {31}
