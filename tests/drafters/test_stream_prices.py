"""Which streams are worth their time."""

import numpy as np
import pytest

from treesnake.drafters.stream_prices import Gains, LevelCosts
from treesnake.drafters.weight_rules import Evidence

LIKE = 0.5
"""The seconds of a step beside drafting."""


def evidence(*guesses: tuple[int, ...]) -> Evidence:
    """Streams that are sure of a token at each position; the target says 0 everywhere."""
    columns = np.eye(4, dtype=np.float32)
    rows = [columns[list(each)] for each in zip(*guesses, strict=True)]
    return Evidence(rows, [columns[0]] * len(rows))


def gains(*guesses: tuple[int, ...], weights: tuple[float, ...], num_steps: int = 40) -> Gains:
    known = Gains.none(len(guesses))
    for _ in range(num_steps):
        known = known.after(evidence(*guesses), np.array(weights), LIKE, is_greedy=True)
    return known


def test_a_set_of_streams_that_never_ran_is_hoped_to_take_its_part() -> None:
    costs = LevelCosts()
    assert costs.seconds((0,)) == 0
    costs.observe((0, 1), 4.0)
    assert costs.seconds((0,)) == 2.0
    costs.observe((0,), 3.0)
    assert costs.seconds((0,)) == 3.0
    assert costs.seconds((0, 1)) == pytest.approx(4.0, rel=0.01)


def test_the_second_run_corrects_a_slow_first_one_and_a_pause_moves_little() -> None:
    costs = LevelCosts()
    for seconds in (9.0, 1.0, 1.0):
        costs.observe((0,), seconds)
    assert costs.seconds((0,)) == 1.0
    costs.observe((0,), 1000.0)
    assert costs.seconds((0,)) == pytest.approx(1.1)


def test_one_slow_level_keeps_no_stream_from_running_alone_for_ever() -> None:
    costs = LevelCosts()
    for _ in range(3):
        costs.observe((0, 1), 4.0)
    costs.observe((0,), 40.0)
    assert costs.seconds((0,)) == 40.0
    for _ in range(400):
        costs.observe((0, 1), 4.0)
    assert costs.seconds((0,)) < 4.0
    costs.observe((0,), 3.0)
    assert costs.seconds((0,)) == 3.0
    assert costs.seconds((0, 1)) == pytest.approx(4.0, rel=0.01)


def test_seconds_follow_a_machine_that_changes() -> None:
    costs = LevelCosts()
    for seconds in [1.0] * 3 + [3.0] * 60:
        costs.observe((0,), seconds)
    assert costs.seconds((0,)) == pytest.approx(3.0, rel=0.02)


def test_a_stream_that_brings_nothing_is_left_out_whatever_little_it_takes() -> None:
    known = gains((0, 0, 1), (0, 0, 1), weights=(0.6, 0.4), num_steps=200)
    assert known.best_count([1.0, 1.1], depth=4) == 1


def test_a_stream_that_is_right_where_the_first_is_not_runs_as_long_as_its_price_allows() -> None:
    known = gains((0, 1, 0, 1), (0, 0, 0, 0), weights=(0.4, 0.6))
    assert known.best_count([0.1, 0.2], depth=4) == 1  # the better one has the larger weight
    known = gains((0, 1, 0, 1), (1, 0, 1, 0), weights=(0.55, 0.45))
    assert known.best_count([0.1, 0.11], depth=4) == 2
    assert known.best_count([0.1, 9.0], depth=4) == 1


def test_little_evidence_leaves_none_out() -> None:
    known = gains((0, 0), (0, 0), weights=(0.5, 0.5), num_steps=1)
    assert known.best_count([0.1, 0.11], depth=4) == 2


def test_samples_are_accepted_as_often_as_mixture_and_target_overlap() -> None:
    target = np.array([0.5, 0.5], np.float32)
    draft = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    known = Gains.none(2).after(
        Evidence([draft], [target]), np.array([0.5, 0.5]), LIKE, is_greedy=False
    )
    assert known.accepted == pytest.approx([0.5, 1.0], abs=1e-5)
    assert known.num_positions == 1
    assert known.rest_s == LIKE


def test_a_token_with_more_than_half_of_the_probability_is_the_best_one() -> None:
    draft = np.array([[0.6, 0.4, 0.0], [0.3, 0.2, 0.5]], np.float32)
    said = np.array([1.0, 0.0, 0.0], np.float32)
    shown = Evidence([draft], [said])
    known = Gains.none(2).after(shown, np.array([0.5, 0.5]), LIKE, is_greedy=True)
    assert known.accepted == pytest.approx([1.0, 0.9])


def test_streams_without_weight_come_last() -> None:
    known = gains((1,), (0,), weights=(0.0, 1.0), num_steps=1)
    assert known.accepted == pytest.approx([1.0, 1.0])
    known = gains((1,), (0,), weights=(0.0, 0.0), num_steps=1)
    assert known.accepted == pytest.approx([0.0, 1.0], abs=1e-5)
