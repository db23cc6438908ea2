"""Costs: read from a table, learned from steps, put right where the table is wrong."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError
from treesnake.search.costs import KNOTS, CostCurve, CostTable, LearnedCosts, LengthFactors

TABLE = {1: 1.0, 8: 2.0, 64: 10.0}
COUNTS = st.integers(1, 80)
SECONDS = st.floats(1e-4, 1e2)


def test_a_table_is_met_at_its_counts_and_interpolated_between_them() -> None:
    curve = CostCurve(TABLE)
    assert [curve.seconds(count) for count in TABLE] == pytest.approx(list(TABLE.values()))
    assert 1.0 < curve.seconds(5) < 2.0
    assert curve.seconds(128) == pytest.approx(10.0 + 64 * 0.5 * 9.0 / 63)
    assert curve.seconds(1000) == curve.seconds(128)
    assert curve.seconds(0) == 0.0


@given(st.lists(st.tuples(COUNTS, SECONDS), max_size=30), st.booleans())
def test_costs_never_fall_with_the_count(
    observed: list[tuple[int, float]], has_table: bool
) -> None:
    curve = CostCurve(TABLE if has_table else {})
    for count, seconds in observed:
        curve.observe(count, seconds)
    costs = [curve.seconds(count) for count in range(1, 130)]
    assert all(0 < first <= second for first, second in pairwise(costs))


@pytest.mark.parametrize("wrong_by", [0.1, 10.0])
def test_one_step_puts_a_table_right_that_is_wrong_everywhere(wrong_by: float) -> None:
    curve = CostCurve({count: seconds * wrong_by for count, seconds in TABLE.items()})
    curve.observe(8, TABLE[8])
    assert [curve.seconds(count) for count in TABLE] == pytest.approx(list(TABLE.values()))


def test_a_slope_that_is_wrong_is_put_right_where_steps_are() -> None:
    curve = CostCurve(dict.fromkeys((1, 64), 1.0))
    for _ in range(3):
        for count, seconds in TABLE.items():
            curve.observe(count, seconds)
    assert [curve.seconds(count) for count in TABLE] == pytest.approx(list(TABLE.values()), rel=0.1)


def test_without_a_table_seconds_rise_half_as_steeply_beyond_the_most_nodes_seen() -> None:
    curve = CostCurve()
    assert not curve.is_known
    curve.observe(1, 3.0)
    assert curve.seconds(64) == pytest.approx(3.0)
    curve.observe(8, 5.0)
    assert curve.seconds(64) == pytest.approx(5.0 + 0.5 * (5.0 - 3.0) / 7 * (64 - 8))
    assert 3.0 < curve.seconds(4) < 5.0
    assert curve.largest_seen == 8


def test_what_runs_for_the_first_time_may_take_long() -> None:
    curve = CostCurve()
    curve.observe(4, 30.0)
    for _ in range(3):
        curve.observe(4, 1.0)
    assert curve.seconds(4) == pytest.approx(1.0, rel=0.2)


def test_few_nodes_take_no_longer_than_more_nodes_took() -> None:
    curve = CostCurve()
    curve.observe(1, 30.0)
    curve.observe(4, 1.0)
    assert curve.seconds(1) == curve.seconds(64) == pytest.approx(1.0)


def test_a_hiccup_counts_little() -> None:
    curve = CostCurve()
    for _ in range(50):
        curve.observe(4, 1.0)
    curve.observe(4, 100.0)
    assert curve.seconds(4) < 1.1


def test_a_machine_that_becomes_slower_is_followed() -> None:
    curve = CostCurve(TABLE)
    for _ in range(100):
        curve.observe(8, 2.0)
    for _ in range(100):
        curve.observe(8, 6.0)
    assert curve.seconds(8) == pytest.approx(6.0, rel=0.1)


def test_costs_grow_with_the_context_as_they_were_measured_to() -> None:
    factors = LengthFactors.of({100: {1: 1.0, 8: 3.0}, 300: {1: 2.0}})
    assert [factors.at(length) for length in (0, 100, 200, 300, 900)] == [1.0, 1.0, 1.5, 2.0, 2.0]
    costs = LearnedCosts(CostTable({100: {1: 1.0, 8: 3.0}, 300: {1: 2.0, 8: 6.0}}, {100: {1: 0.5}}))
    assert costs.score_s(8, 300) == pytest.approx(6.0)
    assert costs.draft_s(1, 300) == pytest.approx(0.5)


def test_a_text_that_shares_passes_pays_an_equal_part_of_all_nodes() -> None:
    alone = LearnedCosts(CostTable({100: TABLE, 300: {1: 2.0}}, {100: {1: 0.5, 8: 0.8}}))
    shared = alone.shared_by(8)
    assert shared.score_s(1, 100) == pytest.approx(2.0 / 8)
    assert shared.score_s(8, 100) == pytest.approx(10.0 / 8)
    assert shared.score_s(16, 100) == pytest.approx(2 * 10.0 / 8), "more than the table has"
    assert shared.score_s(1, 300) == pytest.approx(2 * 2.0 / 8)
    assert shared.draft_s(1, 100) == pytest.approx(0.8 / 8)
    assert alone.score_s(1, 100) == pytest.approx(1.0)


def test_where_nothing_is_known_of_a_text_alone_the_first_shared_steps_tell() -> None:
    curve = CostCurve(CostCurve().shared_by(8))
    assert not curve.is_known
    curve.observe(1, 0.25)
    assert curve.seconds(1) == pytest.approx(0.25)


@pytest.mark.parametrize("table", [{}, {64: {}}, {64: {0: 1.0}}, {64: {1: 0.0}}])
def test_tables_that_cannot_be_are_refused(table: Mapping[int, Mapping[int, float]]) -> None:
    with pytest.raises(InvalidInputError, match="table of costs"):
        CostTable(table, {})


def test_counts_beyond_the_last_knot_count_as_it() -> None:
    curve = CostCurve()
    curve.observe(1000, 2.0)
    assert curve.seconds(KNOTS[-1]) == pytest.approx(2.0)
