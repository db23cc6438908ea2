"""Two drafters, one tree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treesnake import SamplingParams, SpeculativeDecoder
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.prompt import Prompt
from treesnake.protocols import DrafterModel
from treesnake.sampling import TorchRng
from treesnake.shape import LevelWidths, chain
from treesnake.testing import RecurrentModel, TinyDrafterModel, TinyTargetModel, check_drafter

VOCAB_SIZE = 4
LOOKUP = NgramDrafterModel(longest=2, shortest=1)
MODEL = TinyDrafterModel(RecurrentModel(VOCAB_SIZE, seed=1))
TEXTS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12)


@pytest.mark.parametrize(
    "first", [MODEL, LOOKUP, NoDrafterModel()], ids=lambda first: type(first).__name__
)
def test_a_composite_keeps_the_promises_of_drafters(first: DrafterModel) -> None:
    check_drafter(CompositeDrafterModel(first, LOOKUP), VOCAB_SIZE, num_steps=3)


@given(TEXTS, st.sampled_from([0.0, 1.0]), st.integers(0, 99))
def test_the_tree_holds_both_trees_and_says_which_nodes_were_drawn(
    text: list[int], temperature: float, seed: int
) -> None:
    params, shape = SamplingParams(temperature), LevelWidths((2, 1))
    drafts = []
    for model in (MODEL, LOOKUP, CompositeDrafterModel(MODEL, LOOKUP)):
        session = model.new_session()
        session.prefill(Prompt.of(text))
        drafts.append(session.draft(text[-1], shape, params, TorchRng(seed)))
    first, second, both = drafts
    num_first = len(first.tree)
    assert both.tree.tokens[:num_first] == first.tree.tokens
    assert both.sampled_mask.tolist()[:num_first] == first.sampled_mask.tolist()
    assert not both.sampled_mask[num_first:].any()
    paths = [both.tree.path_tokens(node) for node in range(len(both.tree))]
    assert all(second.tree.path_tokens(node) in paths for node in range(len(second.tree)))


def test_greedy_text_is_the_targets_own() -> None:
    target = TinyTargetModel(RecurrentModel(VOCAB_SIZE, seed=2))
    texts = {
        SpeculativeDecoder(target, drafter).generate([1, 2], max_new_tokens=30).token_ids
        for drafter in (NoDrafterModel(), CompositeDrafterModel(MODEL, LOOKUP))
    }
    assert len(texts) == 1


def test_a_second_drafter_that_samples_is_refused() -> None:
    session = CompositeDrafterModel(LOOKUP, MODEL).new_session()
    session.prefill(Prompt((1, 2)))
    with pytest.raises(InvalidInputError, match="give the one that samples first"):
        session.draft(2, chain(2), SamplingParams(1.0), TorchRng(0))
