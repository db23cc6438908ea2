"""Measures by hand."""

from dataclasses import replace

import numpy as np
import pytest

from treesnake.evaluation.bench.measures import measure, measure_agreement
from treesnake.evaluation.bench.record import (
    DrafterRecord,
    RunRecord,
    ShapeUse,
    StepRecord,
    Tally,
    TurnRecord,
)
from treesnake.evaluation.bootstrap import bootstrap_rate, bootstrap_ratio


def run(question: str, num_new: int, first_s: float, total_s: float) -> RunRecord:
    steps = StepRecord(
        num_drafted=6,
        num_accepted=3,
        draft_s=0.2,
        score_s=0.6,
        accept_s=0.1,
        commit_s=0.1,
        by_position=Tally((2, 2), (2, 1)),
        by_rank=Tally((4, 2), (3, 0)),
        shapes={"chain(2)": ShapeUse(1, 3, 0.75), "off": ShapeUse(1, 1, 0.25)},
    )
    turn = TurnRecord(10, num_new, 2, 1, first_s, total_s, tuple(range(num_new)), steps)
    return RunRecord("p", "m", "t", question, "c", "greedy", 0, (turn,), growth_bytes=num_new)


def test_rates_are_ratios_of_sums() -> None:
    runs = [run("1", 11, 1.0, 2.0), run("2", 31, 1.0, 4.0)]
    reference = [run("1", 11, 1.0, 3.0), run("2", 31, 1.0, 7.0), run("3", 5, 1.0, 9.0)]
    measures = measure(runs, reference)
    assert measures.tokens_per_s is not None
    assert measures.tokens_per_s.value == pytest.approx((10 + 30) / (1 + 3))
    assert measures.tokens_per_s_with_prefill is not None
    assert measures.tokens_per_s_with_prefill.value == pytest.approx(42 / 6)
    assert measures.speedup is not None
    assert measures.speedup.value == pytest.approx((40 / 4) / (40 / 8)), "question 3 is left out"
    assert measures.first_token_s == 1
    assert measures.tokens_per_step == pytest.approx(42 / 4)
    assert measures.accepted_per_step == pytest.approx(6 / 4)
    assert measures.acceptance_by_position == (1.0, 0.5)
    assert measures.acceptance_by_rank == (0.75, 0.0)
    assert measures.phases is not None
    assert measures.phases.score_s == pytest.approx(1.2 / 4)
    assert measures.time_by_shape == {"chain(2)": 0.75, "off": 0.25}
    assert measures.growth_bytes == 31
    assert measures.same_as_reference == 2


def test_the_drafters_reading_of_the_prompt_is_no_decoding() -> None:
    one = run("1", 11, 1.0, 2.0)
    late = replace(one, turns=(replace(one.turns[0], total_s=2.5, late_prefill_s=0.5),))
    measures = measure([late], [one])
    assert measures.speedup is not None
    assert measures.speedup.value == pytest.approx(1.0)
    assert measures.speedup_with_prefill is not None
    assert measures.speedup_with_prefill.value == pytest.approx(2.0 / 2.5)


def test_questions_that_the_reference_lacks_are_not_compared() -> None:
    runs = [run("1", 11, 1.0, 2.0), run("2", 31, 1.0, 9.0)]
    measures = measure(runs, [run("1", 11, 1.0, 3.0)])
    assert measures.speedup is not None
    assert measures.speedup.value == pytest.approx(2.0)
    assert measures.same_as_reference == 1
    assert measures.num_questions == 2
    alone = measure(runs, [])
    assert alone.speedup is None
    assert alone.same_as_reference is None


def test_a_method_of_others_has_no_steps() -> None:
    theirs = replace(run("1", 11, 1.0, 2.0), turns=(TurnRecord(10, 11, 2, 1, 1.0, 2.0),))
    measures = measure([theirs], [theirs])
    assert measures.phases is None
    assert measures.accepted_per_step is None
    assert measures.time_by_shape == {}


def test_a_text_of_one_emission_has_no_rate() -> None:
    single = run("1", 1, 2.0, 2.0)
    measures = measure([single], [single])
    assert measures.tokens_per_s is None
    assert measures.speedup is None
    assert measures.speedup_with_prefill is not None


def test_intervals_hold_the_value_and_shrink_with_the_questions() -> None:
    chance = np.random.default_rng(1)
    widths = []
    for number in (20, 2000):
        seconds = chance.uniform(1, 3, number)
        estimate = bootstrap_rate(10 * seconds + chance.normal(0, 3, number), seconds)
        assert estimate is not None
        assert estimate.low < estimate.value < estimate.high
        widths.append(estimate.high - estimate.low)
    assert widths[1] < widths[0] / 5


def test_pairing_takes_out_what_questions_have_in_common() -> None:
    chance = np.random.default_rng(1)
    tokens, seconds = np.full(50, 10.0), chance.uniform(1, 30, 50)
    paired = bootstrap_ratio(tokens, seconds, tokens, 2 * seconds)
    assert paired is not None
    assert paired.value == pytest.approx(2)
    assert paired.high - paired.low < 1e-9


def test_an_interval_is_finite_though_some_questions_took_no_time() -> None:
    tokens, seconds = np.full(3, 10.0), np.array([0.0, 0.0, 1.0])
    estimate = bootstrap_rate(tokens, seconds)
    assert estimate is not None
    assert np.isfinite([estimate.value, estimate.low, estimate.high]).all()


def test_nothing_is_compared_where_there_is_no_time() -> None:
    nothing, something = np.zeros(2), np.ones(2)
    assert bootstrap_rate(something, nothing) is None
    assert bootstrap_ratio(something, something, nothing, something) is None


def test_agreement_adds_up_questions() -> None:
    records = [
        DrafterRecord("p", "d", "t", "1", "c", 10, 2.0, 8, (4, 6), (1.0, 5.0), (2.0, 5.5)),
        DrafterRecord("p", "d", "t", "2", "c", 10, 4.0, 4, (10, 0), (3.0, 0.0), (3.0, 0.0)),
        DrafterRecord("p", "d", "t", "3", "c", error="no probabilities"),
    ]
    measures = measure_agreement(records)
    assert measures is not None
    assert measures.total_variation == pytest.approx(0.3)
    assert measures.same_choice == pytest.approx(0.6)
    assert measures.calibration_error == pytest.approx((1.0 + 0.5) / 20)
    assert measures.confidence == (pytest.approx(4 / 14), pytest.approx(5 / 6))
    assert measure_agreement(records[2:]) is None
