"""Drafter and target side by side."""

import pytest

from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.evaluation.agreement import binned_calibration_error, compare_models
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TableModel, TinyNetwork

PROMPT, TOKENS = Prompt((1, 2)), [3, 0, 1, 2, 2]
SAMPLING = SamplingParams(temperature=1.0)


def test_a_model_agrees_with_itself() -> None:
    model = RecurrentModel(8, seed=5)
    found = compare_models(
        NetworkTargetModel(TinyNetwork(model)).new_session(),
        NetworkDrafterModel(TinyNetwork(model)).new_session(),
        PROMPT,
        TOKENS,
        SAMPLING,
    )
    assert found.num_positions == found.num_same_choice == found.bin_counts.sum() == 5
    assert found.total_variation == pytest.approx(0, abs=1e-6)
    assert found.bin_confidence == pytest.approx(found.bin_target_probs)


def test_the_total_variation_is_that_of_the_tables() -> None:
    target, drafter = TableModel(4, seed=1), TableModel(4, seed=2)
    found = compare_models(
        NetworkTargetModel(TinyNetwork(target)).new_session(),
        NetworkDrafterModel(TinyNetwork(drafter)).new_session(),
        PROMPT,
        TOKENS,
        SAMPLING,
    )
    expected = 0.0
    for token in (2, 3, 0, 1, 2):
        rows = [model.step(model.initial(), token)[1].softmax(-1) for model in (target, drafter)]
        expected += float((rows[0] - rows[1]).abs().sum()) / 2
    assert found.total_variation == pytest.approx(expected, rel=1e-5)


def test_a_drafter_without_probabilities_is_refused() -> None:
    target = NetworkTargetModel(TinyNetwork(TableModel(4))).new_session()
    with pytest.raises(InvalidInputError, match="no probabilities"):
        compare_models(target, NgramDrafterModel().new_session(), PROMPT, TOKENS, SAMPLING)
    with pytest.raises(InvalidInputError, match="temperature"):
        compare_models(target, NgramDrafterModel().new_session(), PROMPT, TOKENS, SamplingParams())


def test_the_calibration_error_weighs_gaps_by_positions() -> None:
    assert binned_calibration_error([10, 30], [5.0, 27.0], [4.0, 30.0]) == pytest.approx(4 / 40)
    assert binned_calibration_error([0], [0.0], [0.0]) == 0
