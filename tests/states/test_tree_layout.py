"""Layouts against a naive definition: a node's ancestors are found by walking up the parents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.states.tree_layout import tree_layout

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


def test_a_copy_becomes_the_layout_of_another_tree() -> None:
    copy = tree_layout((-1, 0, 0), 3, CPU).clone()
    other = tree_layout((-1, -1, 1), 3, CPU)
    copy.overwrite(other)
    for name, tensor in vars(other).items():
        assert torch.equal(getattr(copy, name), tensor)
