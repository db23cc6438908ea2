"""Prompt lookup drafts what it has read, and nothing else."""

from collections.abc import Sequence
from operator import lt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treesnake.chance import TorchRng
from treesnake.draft import Draft
from treesnake.drafters.ngram import MOST_AGREEING, AgreementRecord, NgramDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.shape import OFF, BestFirst, LevelWidths, Priced, Shape, chain
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
    assert tree.depth <= shape.depth
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
    assert draft_after([7, 1, 5, 0, 1, 6, 7, 1], chain(1), model).tree.tokens == (1, 5)
    assert draft_after([1, 5, 0, 1, 6, 1], chain(1), model).tree.tokens == (1, 6)


def test_a_loop_goes_on() -> None:
    assert draft_after([1, 2, 3, 1, 2, 3], chain(5)).tree.tokens == (3, 1, 2, 3, 1, 2)
    assert draft_after([4, 4, 4], chain(3)).tree.tokens == (4, 4, 4, 4)


def test_the_longest_agreement_wins() -> None:
    text = [9, 1, 2, 3, 7, 8, 1, 2, 3, 6, 9, 1, 2, 3]
    model = NgramDrafterModel(longest=2, shortest=2)
    assert draft_after(text, chain(1), model).tree.tokens == (3, 7)


def test_a_tree_holds_several_continuations_joined_where_they_agree() -> None:
    text = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 6, 7, 1, 2]
    tree = draft_after(text, LevelWidths((3, 1))).tree
    paths = [tree.path_tokens(node) for node in range(len(tree)) if not tree.children[node]]
    assert sorted(paths) == [[2, 3, 4], [2, 3, 5], [2, 6, 7]]


@given(MODELS, TEXTS, SHAPES)
def test_a_node_is_less_probable_than_its_parent_and_siblings_share(
    model: NgramDrafterModel, text: list[int], shape: Shape
) -> None:
    draft = draft_after(text, shape, model)
    assert draft.node_probs is not None
    for node, children in enumerate(draft.tree.children):
        shares = [draft.node_probs[child] for child in children]
        assert all(0 < share < 1 for share in shares)
        assert sum(shares) <= draft.node_probs[node]


def test_guesses_are_surer_the_more_agrees() -> None:
    few = draft_after([9, 1, 2, 3, 8, 1, 2], chain(3))
    many = draft_after([9, 7, 1, 2, 3, 9, 7, 1, 2], chain(3))
    assert few.node_probs is not None
    assert many.node_probs is not None
    assert few.tree.tokens == (2, 3, 8, 1)
    assert all(map(lt, few.node_probs[1:], many.node_probs[1:]))


def test_a_priced_tree_holds_what_is_worth_its_price() -> None:
    text = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 6, 7, 1, 2]
    free = draft_after(text, Priced(4, (0.0,) * 3, (0.0,) * 20))
    assert free.node_probs is not None
    price = sorted(free.node_probs)[2]
    dear = draft_after(text, Priced(4, (0.0,) * 3, (price,) * 20))
    assert dear.node_probs is not None
    assert sorted(dear.node_probs) == sorted(prob for prob in free.node_probs if prob >= price)
    assert draft_after(text, Priced(4, (0.0,) * 3, (2.0,))).tree.num_drafted == 0


def num_agreeing(text: Sequence[int], end: int) -> int:
    pairs = zip(reversed(text[:end]), reversed(text), strict=False)
    return next((n for n, (one, other) in enumerate(pairs) if one != other), end)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(1, 9))
def test_what_was_guessed_right_is_counted_for_all_sessions(text: list[int], num_read: int) -> None:
    model = NgramDrafterModel(longest=3, shortest=1)
    session = model.new_session()
    session.prefill(Prompt.of(text[:num_read]))
    session.commit(text[num_read - 1 :])
    expected = AgreementRecord()
    for place in range(max(1, num_read - 1), len(text)):
        held = text[:place]
        tree = draft_after(held, chain(1), NgramDrafterModel(3, 1)).tree
        if tree.num_drafted:
            longest = max(num_agreeing(held, end) for end in range(1, place))
            expected.observe(longest, is_alike=tree.tokens[1] == text[place])
    assert [model.record.probability(n) for n in range(40)] == [
        expected.probability(n) for n in range(40)
    ]


def test_a_record_begins_with_a_belief_and_learns() -> None:
    record = AgreementRecord()
    assert record.probability(1) < record.probability(5) < record.probability(30) < 1
    assert record.probability(MOST_AGREEING) == record.probability(MOST_AGREEING + 100)
    for _ in range(200):
        record.observe(2, is_alike=False)
        record.observe(3, is_alike=True)
    assert record.probability(2) < 0.05
    assert record.probability(3) > 0.95


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
