"""Calibration finds what a pair costs, on a clock that stands still but for the pair's work."""

import sys
from typing import Any, cast

import pytest
from torch import Tensor

from treesnake import SpeculativeDecoder, calibration
from treesnake.calibration import (
    FIRST_NODES,
    FIRST_WIDTHS,
    LEAST_S,
    NODES,
    WIDTHS,
    measure_costs,
)
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.search.costs import CostTable
from treesnake.search.self_tuning import SelfTuningSearch
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TableModel, TinyNetwork

TARGET_STEP_S, DRAFTER_STEP_S = 0.001, 0.01
PROMPT = Prompt((1, 2, 3))


class Clock:
    """Shows the seconds that the models below have taken."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class SlowTarget(RecurrentModel):
    """Takes a time for every node."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(80)
        self.clock = clock

    def step(self, state: Any, token: int) -> tuple[Tensor, Tensor]:
        self.clock.now_s += TARGET_STEP_S
        return super().step(state, token)


class SlowDrafter(TableModel):
    """Takes another time for every node that it expands."""

    clock: Clock

    def step(self, state: tuple[int, ...], token: int) -> tuple[tuple[int, ...], Tensor]:
        self.clock.now_s += DRAFTER_STEP_S
        return super().step(state, token)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("treesnake.clock", "treesnake.calibration"):
        monkeypatch.setattr(sys.modules[module], "perf_counter", clock)
    return clock


def slow_pair(clock: Clock) -> Pair:
    drafter = SlowDrafter(80)
    drafter.clock = clock
    return Pair(
        NetworkTargetModel(TinyNetwork(SlowTarget(clock))),
        NetworkDrafterModel(TinyNetwork(drafter)),
    )


def test_every_count_is_measured_at_every_length(clock: Clock) -> None:
    pair = slow_pair(clock)
    costs = measure_costs(pair, PROMPT, lengths=(4, 8), num_rounds=3)
    assert set(costs.score_s) == set(costs.draft_s) == {4, 8}
    for length in (4, 8):
        score_s = {count: count * TARGET_STEP_S for count in NODES}
        assert costs.score_s[length] == pytest.approx(score_s)
        draft_s = {width: width * DRAFTER_STEP_S for width in WIDTHS}
        assert costs.draft_s[length] == pytest.approx(draft_s)


def test_without_time_the_smallest_count_is_measured_once(clock: Clock) -> None:
    pair = slow_pair(clock)
    costs = measure_costs(pair, PROMPT, lengths=(3,), nodes=(1, 4), widths=(1, 2), budget_s=0.0)
    assert costs.score_s == {3: {1: pytest.approx(TARGET_STEP_S)}}
    assert costs.draft_s == {3: {1: pytest.approx(DRAFTER_STEP_S)}}


def test_lengths_that_do_not_fit_are_left_out() -> None:
    target = NetworkTargetModel(TinyNetwork(RecurrentModel(80), context_length=200))
    pair = Pair(target, NgramDrafterModel())
    costs = measure_costs(pair, PROMPT, lengths=(4, 500), num_rounds=1)
    assert set(costs.score_s) == {4}


def test_what_takes_no_time_is_not_free(clock: Clock) -> None:
    pair = Pair(NetworkTargetModel(TinyNetwork(RecurrentModel(80))), NgramDrafterModel())
    costs = measure_costs(pair, PROMPT, lengths=(4,), num_rounds=1)
    assert set(costs.score_s[4].values()) == set(costs.draft_s[4].values()) == {LEAST_S}


def test_a_native_pair_is_measured_while_it_is_loaded_unless_its_costs_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[CostTable] = []
    monkeypatch.setattr(calibration, "read_costs", lambda _: kept[0] if kept else None)
    decoder = SpeculativeDecoder.from_pretrained("smollm2", "treesnake-smol")
    measured = cast(SelfTuningSearch, decoder.search).costs
    assert measured is not None
    (score_s,), (draft_s,) = measured.score_s.values(), measured.draft_s.values()
    assert 1 in score_s
    assert set(score_s) <= set(FIRST_NODES)
    assert set(draft_s) <= set(FIRST_WIDTHS)
    kept.append(CostTable({64: {1: 1.0}}, {}))
    decoder = SpeculativeDecoder.from_pretrained("smollm2", "treesnake-smol")
    assert cast(SelfTuningSearch, decoder.search).costs is kept[0]
    kept.clear()
    decoder = SpeculativeDecoder.from_pretrained("smollm2", "none")
    assert cast(SelfTuningSearch, decoder.search).costs is None
