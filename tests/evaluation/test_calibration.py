"""Calibration measures something of the right form; how long things take is not asserted."""

from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.evaluation.calibration import NODES, WIDTHS, measure_costs
from treesnake.prompt import Prompt
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TableModel, TinyNetwork

TARGET = NetworkTargetModel(TinyNetwork(RecurrentModel(80)))
PROMPT = Prompt((1, 2, 3))


def test_every_count_is_measured_at_every_length() -> None:
    drafter = NetworkDrafterModel(TinyNetwork(TableModel(80)))
    costs = measure_costs(TARGET, drafter, PROMPT, lengths=(4, 8), num_rounds=1)
    assert {length: tuple(table) for length, table in costs.score_s.items()} == {4: NODES, 8: NODES}
    assert {length: tuple(table) for length, table in costs.draft_s.items()} == {
        4: WIDTHS,
        8: WIDTHS,
    }
    assert costs.score_s[4][64] > costs.score_s[4][1]


def test_lengths_that_do_not_fit_are_left_out() -> None:
    target = NetworkTargetModel(TinyNetwork(RecurrentModel(80), context_length=200))
    costs = measure_costs(target, NgramDrafterModel(), PROMPT, lengths=(4, 500), num_rounds=1)
    assert set(costs.score_s) == {4}
    assert all(seconds > 0 for seconds in costs.draft_s[4].values())
