"""Two drafters, one tree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treesnake import SamplingParams, SpeculativeDecoder
from treesnake.chance import TorchRng
from treesnake.draft import Draft
from treesnake.drafters.composite import CompositeDrafter, CompositeDrafterModel
from treesnake.drafters.memory import MemoryDrafter
from treesnake.drafters.mixture import MixtureDrafterModel, Stream
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.memory.text_memory import TextMemory
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.protocols import DrafterModel
from treesnake.shape import LevelWidths, Priced, Shape, chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TinyNetwork, check_drafter

VOCAB_SIZE = 4
LOOKUP = NgramDrafterModel(longest=2, shortest=1)
MODEL = NetworkDrafterModel(TinyNetwork(RecurrentModel(VOCAB_SIZE, seed=1)))
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
    assert both.sampled_mask[:num_first] == first.sampled_mask
    assert not any(both.sampled_mask[num_first:])
    paths = [both.tree.path_tokens(node) for node in range(len(both.tree))]
    assert all(second.tree.path_tokens(node) in paths for node in range(len(second.tree)))


LOOP = [1, 2, 3, 0] * 3


def draft_after(text: list[int], shape: Shape, first: DrafterModel = MODEL) -> Draft:
    session = CompositeDrafterModel(first, NgramDrafterModel()).new_session()
    session.prefill(Prompt.of(text))
    return session.draft(text[-1], shape, SamplingParams(), TorchRng(0))


def test_a_priced_tree_holds_nodes_of_both_that_are_worth_their_price() -> None:
    free = draft_after(LOOP, Priced(2, (0.0,) * 4, (0.0,) * 30))
    assert free.node_probs is not None
    assert free.num_expanded == (1, 2, 2, 2)
    dear = draft_after(LOOP, Priced(2, (0.0,) * 4, (0.3,) * 30))
    assert dear.node_probs is not None
    assert dear.tree.num_drafted < free.tree.num_drafted
    assert min(dear.node_probs) >= 0.3
    assert dear.tree.follow([*LOOP[-1:], *LOOP[:4]])[-1] > 0


def test_a_model_is_not_run_where_lookup_leaves_too_little() -> None:
    sure = draft_after(LOOP, Priced(2, (0.5,) * 4, (0.0,) * 30))
    assert sure.num_expanded == ()
    assert sure.tree.tokens == (0, 1, 2, 3, 0)
    assert sure.node_probs is not None
    unsure = draft_after([3, 2, 1], Priced(2, (0.5,) * 4, (0.0,) * 30))
    assert unsure.num_expanded is not None
    assert unsure.num_expanded[0] == 1


def test_lookup_is_kept_beside_a_second_drafter_that_leaves_too_little_for_a_model() -> None:
    memory = TextMemory()
    memory.add([9, *LOOP, 3, 3, 3])
    looked_up = CompositeDrafterModel(MODEL, NgramDrafterModel()).new_session()
    both = CompositeDrafter(looked_up, MemoryDrafter(memory))
    both.prefill(Prompt.of(LOOP))
    draft = both.draft(LOOP[-1], Priced(2, (0.5,) * 4, (0.0,) * 30), SamplingParams(), TorchRng(0))
    assert draft.num_expanded == ()
    assert draft.tree.follow([LOOP[-1], *LOOP[:4]])[-1] > 0
    assert draft.tree.follow([LOOP[-1], 3, 3, 3])[-1] > 0


def test_what_drafting_takes_is_what_the_first_drafter_ran() -> None:
    for shape in (chain(2), LevelWidths((2, 1))):
        session = MODEL.new_session()
        session.prefill(Prompt.of(LOOP))
        alone = session.draft(LOOP[-1], shape, SamplingParams(), TorchRng(0))
        both = draft_after(LOOP, shape)
        assert both.num_expanded == alone.tree.num_expanded


def test_the_weights_of_a_mixture_are_kept() -> None:
    network = TinyNetwork(RecurrentModel(VOCAB_SIZE, seed=1))
    other = TinyNetwork(RecurrentModel(VOCAB_SIZE))
    mixture = MixtureDrafterModel((Stream("a", network), Stream("b", other)))
    for text in (LOOP, [3, 2, 1]):
        weights = draft_after(text, chain(2), mixture).stream_weights
        assert weights == {"a": 0.5, "b": 0.5}


def test_greedy_text_is_the_targets_own() -> None:
    target = NetworkTargetModel(TinyNetwork(RecurrentModel(VOCAB_SIZE, seed=2)))
    texts = {
        SpeculativeDecoder(Pair(target, drafter)).generate([1, 2], max_new_tokens=30).token_ids
        for drafter in (NoDrafterModel(), CompositeDrafterModel(MODEL, LOOKUP))
    }
    assert len(texts) == 1


def test_a_second_drafter_that_samples_is_refused() -> None:
    session = CompositeDrafterModel(LOOKUP, MODEL).new_session()
    session.prefill(Prompt((1, 2)))
    with pytest.raises(InvalidInputError, match="give the one that samples first"):
        session.draft(2, chain(2), SamplingParams(1.0), TorchRng(0))
