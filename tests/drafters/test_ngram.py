"""Prompt lookup drafts what it has read, and nothing else."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treesnake.draft import Draft
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams, TorchRng
from treesnake.shape import OFF, BestFirst, LevelWidths, Shape, chain
from treesnake.testing import check_drafter

LOOKUP = NgramDrafterModel()
MODELS = st.builds(
    lambda shortest, more: NgramDrafterModel(shortest + more, shortest),
    st.integers(1, 3),
    st.integers(0, 3),
)
TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=30)
SHAPES = st.builds(LevelWidths, st.lists(st.integers(1, 3), max_size=4).map(tuple)) | st.builds(
    BestFirst, st.integers(1, 3), st.integers(0, 4), st.integers(0, 8)
)


def draft_after(text: Sequence[int], shape: Shape, model: NgramDrafterModel = LOOKUP) -> Draft:
    session = model.new_session()
    session.prefill(Prompt.of(text))
    return session.draft(text[-1], shape, SamplingParams(), TorchRng(0))


def occurs_earlier(run: Sequence[int], text: Sequence[int]) -> bool:
    ends = range(len(run), len(text))
    return any(list(text[end - len(run) : end]) == list(run) for end in ends)


@given(MODELS, TEXTS, SHAPES)
def test_only_what_followed_an_earlier_occurrence_is_drafted(
    model: NgramDrafterModel, text: list[int], shape: Shape
) -> None:
    """Each drafted token came after the shortest run before it, in the text or in the copy."""
    tree = draft_after(text, shape, model).tree
    for node in range(1, len(tree)):
        longer = [*text, *tree.path_tokens(node)[1:]]
        assert occurs_earlier(longer[-model.shortest - 1 :], longer)


@given(MODELS, TEXTS, SHAPES)
def test_trees_stay_within_their_shape(
    model: NgramDrafterModel, text: list[int], shape: Shape
) -> None:
    tree = draft_after(text, shape, model).tree
    width = shape.width if isinstance(shape, BestFirst) else max(shape.widths, default=0)
    assert int(tree.depths.max()) <= shape.depth
    assert tree.num_drafted <= shape.num_drafted
    assert len(tree.children[0]) <= max(width, 0)


@given(MODELS, TEXTS, st.integers(1, 5))
def test_something_is_drafted_wherever_the_end_of_the_text_occurred_before(
    model: NgramDrafterModel, text: list[int], length: int
) -> None:
    tree = draft_after(text, chain(length), model).tree
    end = text[-model.shortest :]
    found = len(end) == model.shortest and occurs_earlier(end, text)
    assert tree.num_drafted == (length if found else 0)


def test_the_longest_run_wins_and_then_the_latest() -> None:
    model = NgramDrafterModel(longest=2, shortest=1)
    assert draft_after([7, 1, 5, 0, 1, 6, 7, 1], chain(1), model).tree.tokens == [1, 5]
    assert draft_after([1, 5, 0, 1, 6, 1], chain(1), model).tree.tokens == [1, 6]


def test_a_loop_goes_on() -> None:
    assert draft_after([1, 2, 3, 1, 2, 3], chain(5)).tree.tokens == [3, 1, 2, 3, 1, 2]
    assert draft_after([4, 4, 4], chain(3)).tree.tokens == [4, 4, 4, 4]


def test_a_tree_holds_several_continuations_joined_where_they_agree() -> None:
    text = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 6, 7, 1, 2]
    tree = draft_after(text, LevelWidths((3, 1))).tree
    paths = [tree.path_tokens(node) for node in range(len(tree)) if not tree.children[node]]
    assert sorted(paths) == [[2, 3, 4], [2, 3, 5], [2, 6, 7]]


def test_nothing_is_drafted_where_nothing_is_asked_for() -> None:
    assert draft_after([1, 2, 1, 2, 1], OFF).tree.num_drafted == 0
    assert draft_after([1, 2, 1, 2, 1], BestFirst(2, 3, 0)).tree.num_drafted == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_prompt_lookup_keeps_the_promises_of_drafters(seed: int) -> None:
    check_drafter(NgramDrafterModel(longest=3, shortest=1), vocab_size=3, seed=seed, num_steps=3)


@pytest.mark.parametrize(("longest", "shortest"), [(1, 2), (3, 0)])
def test_runs_that_cannot_be_looked_up_are_refused(longest: int, shortest: int) -> None:
    with pytest.raises(InvalidInputError, match="prompt lookup needs 1 <= shortest <= longest"):
        NgramDrafterModel(longest, shortest)
