"""Waiting times have the exponential distribution, and belong to seed, place and token."""

import numpy as np

from treesnake.waiting_times import WaitingTimes, waiting_times


def test_times_have_the_exponential_distribution() -> None:
    """The largest distance of the two distribution functions is as small as chance makes it."""
    times = np.sort(np.concatenate([waiting_times(5, place, 4001) for place in range(50)]))
    expected = -np.expm1(-times.astype(np.float64))
    distance = np.abs(expected - (np.arange(len(times)) + 0.5) / len(times)).max()
    assert distance < 2.2 / len(times) ** 0.5  # once in 10,000 times (Kolmogorov)


def test_short_times_are_as_frequent_as_they_should_be() -> None:
    """They decide who comes first, and single precision could lose them."""
    times = np.concatenate([waiting_times(6, place, 50_000) for place in range(40)])
    for bound in (2.0**-6, 1e-3, 1e-5):
        mean = len(times) * -np.expm1(-bound)
        assert abs((times < bound).sum() - mean) < 4 * mean**0.5
    assert times.min() > 0
    assert np.isfinite(times).all()


def test_fewer_tokens_have_the_same_times() -> None:
    many = waiting_times(3, 7, 100)
    for num_tokens in (1, 2, 31, 99):
        assert (waiting_times(3, 7, num_tokens) == many[:num_tokens]).all()


def test_seeds_and_places_have_times_of_their_own() -> None:
    rows = [waiting_times(seed, place, 64) for seed in (0, 1, 2**63 - 1) for place in (0, 1, 900)]
    assert len({row.tobytes() for row in rows}) == len(rows)
    assert abs(np.corrcoef(rows)[np.triu_indices(len(rows), 1)]).max() < 0.5


def test_a_seed_means_the_same_everywhere() -> None:
    expected = [1.6496509, 2.912817, 0.24636763]
    assert np.allclose(waiting_times(1, 2, 3), expected, atol=1e-4)


def test_places_move_with_the_text() -> None:
    times = WaitingTimes(4)
    later = times.at(3, 10).copy()
    times.advance(2)
    assert (times.at(1, 10) == later).all()
    assert (times.at(1, 12)[:10] == later).all()
