"""A node sees what it would see if its path were the text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.models.hf_masks import Locality, Span, tree_mask
from treesnake.tree import TokenTree

SPANS = [Span(), Span(Locality.WINDOW, 1), Span(Locality.WINDOW, 4), Span(Locality.CHUNK, 3)]


def is_near(span, query, key):
    if span.locality is Locality.WINDOW:
        return query - key < span.size
    if span.locality is Locality.CHUNK:
        return query // span.size == key // span.size
    return True


@st.composite
def trees(draw):
    num_nodes = draw(st.integers(1, 12))
    parents = [-1, *(draw(st.integers(0, node - 1)) for node in range(1, num_nodes))]
    return TokenTree(torch.zeros(num_nodes, dtype=torch.long), torch.tensor(parents))


@pytest.mark.parametrize("span", SPANS, ids=str)
@given(tree=trees(), num_held=st.integers(0, 9), num_new=st.integers(1, 12))
def test_each_row_shows_the_text_and_the_ancestors_that_are_near(span, tree, num_held, num_new):
    newest = slice(-num_new, None)
    mask = tree_mask(tree.ancestor_mask[newest], tree.depths, num_held, span, torch.float32)
    hidden = torch.finfo(torch.float32).min
    for node in range(len(tree))[newest]:
        path = tree.path(node)
        query = num_held + len(path) - 1
        expected = torch.full((num_held + len(tree),), hidden)
        for position, row in enumerate([*range(num_held), *(num_held + step for step in path)]):
            if is_near(span, query, position):
                expected[row] = 0
        assert torch.equal(mask[0, 0, node - len(tree)], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hidden_rows_get_a_number_that_the_dtype_can_hold(dtype):
    tree = TokenTree(torch.tensor([1, 2, 3]), torch.tensor([-1, 0, 0]))
    mask = tree_mask(tree.ancestor_mask, tree.depths, 2, Span(), dtype)
    assert mask.dtype == dtype
    assert mask.isfinite().all()
    assert mask.min() == torch.finfo(dtype).min
