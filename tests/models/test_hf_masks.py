"""A node sees what it would see if its path were the text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.models.hf_masks import Locality, PaddedTrees, Span, tree_mask
from treesnake.states.tree_layout import TreeLayout, tree_layout

SPANS = [Span(), Span(Locality.WINDOW, 1), Span(Locality.WINDOW, 4), Span(Locality.CHUNK, 3)]


def is_near(span, query, key):
    if span.locality is Locality.WINDOW:
        return query - key < span.size
    if span.locality is Locality.CHUNK:
        return query // span.size == key // span.size
    return True


def layout(*parents) -> TreeLayout:
    return tree_layout(parents, conv_width=1, device=torch.device("cpu"))


def path(tree, node):
    return [*path(tree, int(tree.parents[node])), node] if node >= 0 else []


@st.composite
def trees(draw):
    num_nodes = draw(st.integers(1, 12))
    return layout(-1, *(draw(st.integers(-1, node - 1)) for node in range(1, num_nodes)))


@pytest.mark.parametrize("span", SPANS, ids=str)
@given(tree=trees(), num_held=st.integers(0, 9), num_new=st.integers(1, 12))
def test_each_row_shows_the_text_and_the_ancestors_that_are_near(span, tree, num_held, num_new):
    newest = slice(-num_new, None)
    mask = tree_mask(tree.ancestor_mask[newest], tree.depths, num_held, span, torch.float32)
    hidden = torch.finfo(torch.float32).min
    for node in range(len(tree))[newest]:
        steps = path(tree, node)
        query = num_held + len(steps) - 1
        expected = torch.full((num_held + len(tree),), hidden)
        for position, row in enumerate([*range(num_held), *(num_held + step for step in steps)]):
            if is_near(span, query, position):
                expected[row] = 0
        assert torch.equal(mask[0, 0, node - len(tree)], expected)


@st.composite
def texts_with_new_nodes(draw):
    tree = draw(trees())
    return tree, draw(st.integers(0, 9)), draw(st.integers(1, len(tree)))


@pytest.mark.parametrize("span", SPANS, ids=str)
@given(texts=st.lists(texts_with_new_nodes(), min_size=1, max_size=4))
def test_masks_of_texts_side_by_side_are_those_of_each_alone(span, texts):
    layouts, num_held, num_new = zip(*texts, strict=True)
    padded = PaddedTrees.of(layouts, num_new, num_held, torch.device("cpu"))
    masks = padded.mask(span, torch.float32)
    hidden = torch.finfo(torch.float32).min
    for text, (tree, held, new) in enumerate(texts):
        alone = tree_mask(tree.ancestor_mask[-new:], tree.depths, held, span, torch.float32)
        assert torch.equal(masks[text, :, :new, : held + len(tree)], alone[0])
        assert torch.equal(padded.positions[text, :new], held + tree.depths[-new:])
        # What fills up sees what the last node sees, and nobody sees it.
        assert bool((masks[text, :, new:] == masks[text, :, new - 1 : new]).all())
        assert bool((masks[text, :, :, held + len(tree) :] == hidden).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hidden_rows_get_a_number_that_the_dtype_can_hold(dtype):
    tree = layout(-1, 0, 0)
    alone = tree_mask(tree.ancestor_mask, tree.depths, 2, Span(), dtype)
    padded = PaddedTrees.of([tree], [3], [2], torch.device("cpu")).mask(Span(), dtype)
    for mask in (alone, padded):
        assert mask.dtype == dtype
        assert mask.isfinite().all()
        assert mask.min() == torch.finfo(dtype).min
