"""Attention over a text and a tree: the compiled form against the definition, and its bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treesnake.kernels.cpu import attention as cpu
from treesnake.kernels.reference import attention as reference
from treesnake.tree import TokenTree

CASES = [(1, 1, 16), (9, 3, 64), (4, 4, 24), (6, 1, 128)]


def random_tree(num_nodes: int, random: torch.Generator) -> TokenTree:
    """Returns a tree whose first nodes are often a chain."""
    reach = int(torch.randint(1, 5, (), generator=random))
    parents = [
        int(torch.randint(max(0, node - reach), node, (), generator=random))
        for node in range(1, num_nodes)
    ]
    return TokenTree(torch.zeros(num_nodes, dtype=torch.long), torch.tensor([-1, *parents]))


def random_inputs(
    shape: tuple[int, int, int], nodes: int, rows: int, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads, kv_heads, head_dim = shape
    queries = torch.randn(nodes, heads, head_dim, generator=random)
    keys, values = torch.randn(2, kv_heads, rows, head_dim, generator=random)
    return queries, keys, values


@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 100])
def test_forms_agree(shape: tuple[int, int, int], window: int | None, length: int) -> None:
    random = torch.Generator().manual_seed(length)
    tree = random_tree(13, random)
    inputs = random_inputs(shape, len(tree), length + len(tree), random)
    scale = shape[2] ** -0.5
    expected = reference.tree_attention(*inputs, tree.ancestor_mask, scale, window)
    result = cpu.tree_attention(*inputs, tree.ancestor_mask, scale, window)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_caches_are_read_exactly() -> None:
    random = torch.Generator().manual_seed(3)
    tree = random_tree(9, random)
    queries, keys, values = random_inputs((4, 2, 32), len(tree), 40, random)
    keys, values = keys.half(), values.half()
    expected = reference.tree_attention(queries, keys, values, tree.ancestor_mask, 0.2)
    result = cpu.tree_attention(queries, keys, values, tree.ancestor_mask, 0.2)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40)
@given(
    nodes=st.integers(1, 20),
    length=st.integers(0, 70),
    window=st.one_of(st.none(), st.integers(1, 50)),
    seed=st.integers(0, 2**31),
)
def test_a_node_has_the_bits_of_its_path_in_a_text(
    nodes: int, length: int, window: int | None, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    tree = random_tree(nodes, random)
    queries, keys, values = random_inputs((6, 2, 32), nodes, length + nodes, random)
    together = cpu.tree_attention(queries, keys, values, tree.ancestor_mask, 0.2, window)
    for node in range(nodes):
        path = list(tree.path(node))
        rows = [*range(length), *(length + step for step in path)]
        mask = torch.ones(1, 1, dtype=torch.bool)
        alone = cpu.tree_attention(
            queries[node : node + 1], keys[:, rows], values[:, rows], mask, 0.2, window
        )
        assert torch.equal(alone[0], together[node])


def test_what_a_node_does_not_see_does_not_matter() -> None:
    random = torch.Generator().manual_seed(0)
    tree = TokenTree(torch.zeros(4, dtype=torch.long), torch.tensor([-1, 0, 0, 1]))
    queries, keys, values = random_inputs((2, 1, 16), 4, 24, random)
    before = cpu.tree_attention(queries, keys, values, tree.ancestor_mask, 0.25)
    keys[:, 22], values[:, 22] = torch.nan, torch.inf  # node 2, a sibling of node 1
    after = cpu.tree_attention(queries, keys, values, tree.ancestor_mask, 0.25)
    assert torch.equal(after[[0, 1, 3]], before[[0, 1, 3]])
    assert after[2].isnan().all()
