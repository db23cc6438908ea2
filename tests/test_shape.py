"""Shapes as data: what they count, how they are clipped, and how they are written."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from treesnake.errors import InvalidInputError
from treesnake.search.static import StaticSearch
from treesnake.shape import (
    OFF,
    BestFirst,
    FixedTree,
    LevelWidths,
    Priced,
    Shape,
    ShapeKind,
    chain,
    parse_shape,
)

LEVEL_WIDTHS = st.builds(
    LevelWidths, st.lists(st.integers(1, 4), max_size=5).map(tuple), st.booleans()
)
BEST_FIRST = st.builds(BestFirst, st.integers(1, 9), st.integers(0, 9), st.integers(0, 99))
FIXED_TREES = st.builds(
    FixedTree,
    st.lists(st.integers(0, 3), min_size=1, max_size=8).map(
        lambda steps: tuple(min(sum(steps[: node + 1]), node) for node in range(len(steps)))
    ),
    st.booleans(),
)
PRICES = st.lists(st.floats(0, 2), max_size=4).map(tuple)
PRICED = st.builds(Priced, st.integers(1, 4), PRICES, PRICES)


@given(LEVEL_WIDTHS | BEST_FIRST | FIXED_TREES | PRICED)
def test_a_shape_is_read_as_it_was_written(shape: Shape) -> None:
    assert parse_shape(str(shape)) == shape


@pytest.mark.parametrize("shape", [OFF, chain(0), LevelWidths((), sampled=False)])
def test_a_tree_without_levels_is_written_off(shape: Shape) -> None:
    assert str(shape) == "off"
    assert parse_shape("off") == OFF == shape


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("chain(4)", LevelWidths((1, 1, 1, 1))),
        (" 3x2x2x1x1 ", LevelWidths((3, 2, 2, 1, 1))),
        ("2", LevelWidths((2,))),
        ("3x2 chosen", LevelWidths((3, 2), sampled=False)),
        ("chain(2) chosen", chain(2, sampled=False)),
        ("best_first(4, 6, 24)", BestFirst(4, 6, 24)),
        ("best_first(4,6,24)", BestFirst(4, 6, 24)),
        ("tree(0, 0, 1) chosen", FixedTree((0, 0, 1), sampled=False)),
        ("priced(2; 0.5, 0.25; )", Priced(2, (0.5, 0.25), ())),
    ],
)
def test_people_may_write_shapes_too(text: str, shape: Shape) -> None:
    assert parse_shape(text) == shape


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tree",
        "3x",
        "0x2",
        "chain(-1)",
        "chain(x)",
        "best_first(1, 2)",
        "best_first(0, 1, 1)",
        "best_first(4, 6, 24) chosen",
        "tree(1)",
        "tree(0, 1, 0)",
        "priced(2; 0.5)",
        "priced(0; 0.5; 0.5)",
        "priced(1; -0.5; 0.5)",
    ],
)
def test_text_that_is_no_shape_is_refused_with_examples(text: str) -> None:
    with pytest.raises(InvalidInputError, match="write off, chain"):
        parse_shape(text)


@given(LEVEL_WIDTHS)
def test_level_widths_know_the_size_of_their_tree(shape: LevelWidths) -> None:
    assert shape.num_drafted == shape.as_tree().num_drafted
    assert shape.depth == shape.as_tree().depth == len(shape.widths)


@given(LEVEL_WIDTHS)
def test_level_widths_count_the_children_of_each_node(shape: LevelWidths) -> None:
    tree = shape.as_tree()
    for depth, children in zip(tree.depths, tree.children, strict=True):
        assert len(children) == (shape.widths[depth] if depth < shape.depth else 0)


def test_the_papers_tree_has_46_nodes_in_levels() -> None:
    tree = LevelWidths((3, 2, 2, 1, 1)).as_tree()
    assert [tree.depths.count(depth) for depth in range(6)] == [1, 3, 6, 12, 12, 12]


@given(LEVEL_WIDTHS | BEST_FIRST | FIXED_TREES | PRICED, st.integers(-1, 9))
def test_a_clipped_shape_is_no_deeper_than_the_room(shape: Shape, depth: int) -> None:
    clipped = shape.clipped(depth)
    assert clipped.depth == max(min(depth, shape.depth), 0)
    if depth >= shape.depth:
        assert clipped == shape


def test_clipping_keeps_how_children_are_found() -> None:
    assert LevelWidths((3, 2), sampled=False).clipped(1) == LevelWidths((3,), sampled=False)
    assert BestFirst(4, 6, 24).clipped(2) == BestFirst(4, 2, 24)


@pytest.mark.parametrize("widths", [(0,), (2, -1)])
def test_widths_below_one_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="at least 1"):
        LevelWidths(widths)


@pytest.mark.parametrize(("width", "depth", "num_drafted"), [(0, 1, 1), (1, -1, 1), (1, 1, -1)])
def test_impossible_best_first_shapes_are_refused(width: int, depth: int, num_drafted: int) -> None:
    with pytest.raises(InvalidInputError, match="best-first"):
        BestFirst(width, depth, num_drafted)


@pytest.mark.parametrize(
    "text",
    [
        "chain(100000000)",
        f"chain({10**30})",
        "99999x99999",
        "2" + 20 * "x2",
        "best_first(2, 9, 99999)",
    ],
)
def test_shapes_that_no_memory_holds_are_refused_before_they_are_made(text: str) -> None:
    with pytest.raises(InvalidInputError, match="at most 4096 nodes"):
        parse_shape(text)


def test_chains_of_negative_length_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="negative length"):
        chain(-1)


SHAPES = LEVEL_WIDTHS | BEST_FIRST | FIXED_TREES | PRICED


@given(SHAPES)
def test_a_shape_is_a_fixed_tree_or_a_priced_one(shape: Shape) -> None:
    forms = [form for form in (shape.as_tree(), shape.as_priced()) if form is not None]
    assert len(forms) == 1
    (form,) = forms
    assert (form.depth, form.num_drafted) == (shape.depth, shape.num_drafted)
    assert form.widest == shape.widest
    assert (shape.as_tree() is shape) == (shape.kind == ShapeKind.FIXED_TREE)
    assert (shape.as_priced() is shape) == (shape.kind == ShapeKind.PRICED)


@given(LEVEL_WIDTHS)
def test_level_widths_as_a_tree_have_as_many_children_at_every_depth(shape: LevelWidths) -> None:
    tree = shape.as_tree()
    assert tree.sampled == shape.sampled
    for depth, children in zip(tree.depths, tree.children, strict=True):
        assert len(children) == (*shape.widths, 0)[depth]
    assert shape.widest == len(tree.children[0])


@given(LEVEL_WIDTHS | BEST_FIRST | FIXED_TREES, st.floats(0, 1), st.integers(0, 99))
def test_without_prices_every_node_and_level_pays(shape: Shape, prob: float, num: int) -> None:
    assert shape.pays(prob, num)
    assert shape.level_pays(num, prob)


def test_prices_say_which_nodes_and_levels_pay() -> None:
    shape = Priced(3, (0.5, 0.8), (0.1, 0.4))
    assert shape.widest == 3
    assert [shape.pays(0.3, num_kept) for num_kept in range(3)] == [True, False, False]
    assert [shape.level_pays(level, 0.6) for level in range(3)] == [True, False, False]
    assert shape.level_pays(0, float("nan")), "what is unknown may pay"


def test_a_best_first_tree_is_a_priced_one_for_nothing() -> None:
    assert BestFirst(3, 2, 4).as_priced() == Priced(3, (0.0, 0.0), (0.0,) * 4)


@pytest.mark.parametrize("length", [1.5, "3", True, None])
def test_a_chain_has_a_whole_number_of_tokens(length: Any) -> None:
    """While tests run, types are checked before our own checks are."""
    with pytest.raises((InvalidInputError, TypeCheckError)):
        chain(length)
    with pytest.raises((InvalidInputError, TypeCheckError)):
        LevelWidths((length,))
    with pytest.raises((InvalidInputError, TypeCheckError)):
        BestFirst(length, 2, 3)
    with pytest.raises((InvalidInputError, TypeCheckError)):
        StaticSearch(length)
