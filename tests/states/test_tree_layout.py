"""Layouts against a naive definition: a node's ancestors are found by walking up the parents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.states.tree_layout import RowsSize, tree_layout, tree_rows

CPU = torch.device("cpu")
PARENTS = st.lists(st.integers(0, 10**6), min_size=1, max_size=24).map(
    lambda draws: tuple(draw % (node + 1) - 1 for node, draw in enumerate(draws))
)


def naive_path(parents: tuple[int, ...], node: int) -> list[int]:
    return [*naive_path(parents, parents[node]), node] if node >= 0 else []


@given(PARENTS)
def test_the_ancestor_mask_is_true_on_paths_and_nowhere_else(parents: tuple[int, ...]) -> None:
    layout = tree_layout(parents, 4, CPU)
    for node in range(len(layout)):
        seen = layout.ancestor_mask[node].nonzero()[:, 0].tolist()
        assert seen == naive_path(parents, node)
        assert layout.depths[node] == len(seen) - 1


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4, 5, 8, 9, 64, 65, 129])
def test_the_ancestor_mask_of_a_long_chain_is_a_triangle(num_nodes: int) -> None:
    layout = tree_layout(tuple(range(-1, num_nodes - 1)), 4, CPU)
    assert torch.equal(layout.ancestor_mask, torch.ones(num_nodes, num_nodes).tril().bool())


@given(PARENTS, st.integers(1, 5))
def test_windows_hold_the_last_inputs_of_each_path(
    parents: tuple[int, ...], conv_width: int
) -> None:
    layout = tree_layout(parents, conv_width, CPU)
    num_history = conv_width - 1
    for node, window in enumerate(layout.windows.tolist()):
        rows = [*range(num_history), *(num_history + step for step in naive_path(parents, node))]
        assert window == rows[-conv_width:]


def test_a_shape_that_was_seen_is_not_laid_out_again() -> None:
    assert tree_layout((-1, 0), 4, CPU) is tree_layout((-1, 0), 4, CPU)


@given(trees=st.lists(PARENTS, min_size=1, max_size=4), data=st.data())
def test_rows_of_several_trees_are_those_of_each_and_what_fills_up_is_seen_by_nobody(
    trees: list[tuple[int, ...]], data: st.DataObject
) -> None:
    layouts = [tree_layout(parents, 4, CPU) for parents in trees]
    num_new = [data.draw(st.integers(1, len(parents))) for parents in trees]
    slots = data.draw(st.permutations(range(len(trees))))
    most = max(map(len, trees))
    size = RowsSize(len(trees), max(num_new), most)
    if data.draw(st.booleans()):
        size = size.rounded()
    spare_row = most + 7
    rows = tree_rows(layouts, num_new, slots, size, spare_row)
    assert rows.slots.tolist() == [*slots, *[slots[0]] * (size.trees - len(trees))]
    assert rows.ancestor_mask.shape == (size.trees, size.new, size.nodes)
    for tree in range(size.trees):
        new = num_new[tree] if tree < len(trees) else 0
        for node in range(new):
            parents, place = trees[tree], len(trees[tree]) - new + node
            assert rows.rows[tree, node] == place
            assert rows.parents[tree, node] == parents[place]
            seen = rows.ancestor_mask[tree, node].nonzero()[:, 0].tolist()
            assert seen == naive_path(parents, place)
            assert torch.equal(rows.windows[tree, node], layouts[tree].windows[place])
        assert (rows.rows[tree, new:] == spare_row).all()
        assert not rows.ancestor_mask[tree, new:].any()


def test_rounded_sizes_are_few_and_never_too_small() -> None:
    rounded = {RowsSize(trees, 3, nodes).rounded() for trees in range(1, 9) for nodes in (60, 64)}
    assert rounded == {RowsSize(trees, 4, 64) for trees in (1, 2, 4, 8)}
