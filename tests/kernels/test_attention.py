"""Attention over a text and a tree: the compiled form against the definition, and its bits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Float
from torch import Tensor

from treesnake.kernels.cpu.attention import (
    KEY_BLOCK,
    PATH_BLOCK,
    SEES_ALL,
    SPARE_ROWS,
    Scratch,
    TreeView,
    attend,
    trace_path,
)
from treesnake.kernels.cpu.jit import entry_point
from treesnake.kernels.cpu.linear import padded
from treesnake.kernels.cpu.packing import BITS, STORAGE
from treesnake.kernels.reference import attention as reference
from treesnake.states.tree_layout import tree_layout
from treesnake.tree import TokenTree

CASES = [(1, 1, 16), (9, 3, 64), (4, 4, 24), (6, 1, 128)]


@entry_point
def _tree_attention(queries, group, keys, values, ancestor_mask, view, window, scratch, out):
    nodes = ancestor_mask.shape[0]
    for node in range(nodes):
        trace_path(ancestor_mask[node], node, view)
    for head in range(keys.shape[0]):
        cache = keys[head], values[head]
        attend(queries[head], 0, nodes * group, group, *cache, view, window, scratch, out, head)


def tree_attention(
    queries: Float[Tensor, "nodes heads head_dim"],
    keys: Float[Tensor, "kv_heads rows head_dim"],
    values: Float[Tensor, "kv_heads rows head_dim"],
    ancestor_mask: Bool[Tensor, "nodes tree_nodes"],
    scale: float,
    window: int | None = None,
) -> Float[Tensor, "nodes heads head_dim"]:
    """The compiled form of `reference.tree_attention`."""
    (nodes, heads, head_dim), (kv_heads, num_rows, _) = queries.shape, keys.shape
    group, stride, capacity = heads // kv_heads, padded(head_dim), padded(num_rows)
    tile_rows = nodes * group + SPARE_ROWS
    grouped = np.zeros((kv_heads, tile_rows, stride), np.float32)
    by_head = (queries * scale).unflatten(1, (kv_heads, group)).transpose(0, 1).flatten(1, 2)
    grouped[:, : nodes * group, :head_dim] = by_head.numpy()
    caches = []
    for cached in (keys, values):
        bits = np.zeros((kv_heads, num_rows, stride), STORAGE[cached.dtype])
        bits[:, :, :head_dim] = cached.view(BITS[cached.dtype]).numpy()
        caches.append(bits)
    view = TreeView(
        num_rows - ancestor_mask.shape[1],
        np.zeros(nodes, np.int64),
        np.zeros(nodes, np.int64),
        np.zeros(ancestor_mask.shape, np.int64),
    )
    scratch = Scratch(
        np.zeros((stride, KEY_BLOCK), caches[0].dtype),
        np.zeros((PATH_BLOCK, stride), caches[0].dtype),
        np.zeros((tile_rows, capacity), np.float32),
        np.zeros((tile_rows, stride), np.float32),
        np.zeros(tile_rows, np.float32),
    )
    out = np.zeros((nodes, heads * stride), np.float32)
    mask = ancestor_mask.contiguous().numpy()
    window = window or SEES_ALL
    _tree_attention(grouped, group, *caches, mask, view, window, scratch, out)
    return torch.from_numpy(out.reshape(nodes, heads, stride)[:, :, :head_dim])


def random_tree(num_nodes: int, random: torch.Generator) -> TokenTree:
    """Returns a tree whose first nodes are often a chain."""
    reach = int(torch.randint(1, 5, (), generator=random))
    parents = [
        int(torch.randint(max(0, node - reach), node, (), generator=random))
        for node in range(1, num_nodes)
    ]
    return TokenTree.of([0] * num_nodes, [-1, *parents])


def mask_of(tree: TokenTree) -> Bool[Tensor, "nodes nodes"]:
    return tree_layout(tree.parents, 1, torch.device("cpu")).ancestor_mask


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
    expected = reference.tree_attention(*inputs, mask_of(tree), scale, window)
    result = tree_attention(*inputs, mask_of(tree), scale, window)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_caches_are_read_exactly() -> None:
    random = torch.Generator().manual_seed(3)
    tree = random_tree(9, random)
    queries, keys, values = random_inputs((4, 2, 32), len(tree), 40, random)
    keys, values = keys.half(), values.half()
    expected = reference.tree_attention(queries, keys, values, mask_of(tree), 0.2)
    result = tree_attention(queries, keys, values, mask_of(tree), 0.2)
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
    together = tree_attention(queries, keys, values, mask_of(tree), 0.2, window)
    for node in range(nodes):
        path = list(tree.path(node))
        rows = [*range(length), *(length + step for step in path)]
        mask = torch.ones(1, 1, dtype=torch.bool)
        alone = tree_attention(
            queries[node : node + 1], keys[:, rows], values[:, rows], mask, 0.2, window
        )
        assert torch.equal(alone[0], together[node])


def test_what_a_node_does_not_see_does_not_matter() -> None:
    random = torch.Generator().manual_seed(0)
    tree = TokenTree.of([0] * 4, [-1, 0, 0, 1])
    queries, keys, values = random_inputs((2, 1, 16), 4, 24, random)
    before = tree_attention(queries, keys, values, mask_of(tree), 0.25)
    keys[:, 22], values[:, 22] = torch.nan, torch.inf  # node 2, a sibling of node 1
    after = tree_attention(queries, keys, values, mask_of(tree), 0.25)
    assert torch.equal(after[[0, 1, 3]], before[[0, 1, 3]])
    assert after[2].isnan().all()
