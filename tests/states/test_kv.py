"""A cache grows in place, and keeps the rows of a path where they belong."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.states.kv import ROWS_PER_BLOCK, KvCache

HEADS, KEY_DIM, VALUE_DIM = 2, 3, 5


def rows(first, count):
    """Rows whose every number is their number in the order of appending."""
    numbers = torch.arange(first, first + count, dtype=torch.float32)[None, None, :, None]
    return numbers.expand(1, HEADS, count, KEY_DIM), numbers.expand(1, HEADS, count, VALUE_DIM)


def numbers_in(layer):
    """The numbers of a layer's rows, once it is sure that they are whole rows."""
    keys, values = layer.first(layer.get_seq_length())
    numbers = keys[0, 0, :, 0]
    assert torch.equal(keys, numbers[None, None, :, None].expand(1, HEADS, -1, KEY_DIM))
    assert torch.equal(values, numbers[None, None, :, None].expand(1, HEADS, -1, VALUE_DIM))
    return numbers.tolist()


def filled(num_rows, *, num_layers=2):
    cache = KvCache([True] * num_layers)
    for layer in range(num_layers):
        cache.update(*rows(0, num_rows), layer)
    return cache


@given(
    st.integers(0, 2 * ROWS_PER_BLOCK),
    st.integers(1, 20).flatmap(
        lambda nodes: st.tuples(st.just(nodes), st.sets(st.integers(0, nodes - 1)))
    ),
)
def test_a_path_is_kept_behind_the_text_and_the_rest_of_its_tree_is_dropped(num_held, tree):
    num_nodes, nodes = tree
    path = sorted(nodes)
    cache = filled(num_held + num_nodes)
    cache.keep(num_held, path)
    expected = [*range(num_held), *(num_held + node for node in path)]
    assert all(numbers_in(layer) == expected for layer in cache.layers)
    assert cache.get_seq_length() == len(expected)


def test_rows_come_back_with_those_before_them():
    cache = filled(4)
    keys, values = cache.update(*rows(4, 3), 0)
    assert keys.shape == (1, HEADS, 7, KEY_DIM)
    assert values.shape == (1, HEADS, 7, VALUE_DIM)
    assert numbers_in(cache.layers[0]) == list(range(7))


def test_growing_by_one_token_leaves_most_rows_where_they_are():
    cache = KvCache([True])
    places = set()
    for row in range(10 * ROWS_PER_BLOCK):
        keys, _ = cache.update(*rows(row, 1), 0)
        places.add(keys.data_ptr())
    assert numbers_in(cache.layers[0]) == list(range(10 * ROWS_PER_BLOCK))
    assert len(places) < 10


def test_a_path_that_is_in_place_already_is_not_copied():
    cache = filled(10)
    keys, _ = cache.layers[0].first(10)
    before = keys._version
    cache.keep(4, [0, 1, 2])
    assert keys._version == before
    cache.keep(2, [0, 3])
    assert keys._version > before


def test_masks_are_told_of_all_rows_in_use():
    cache = filled(6)
    cache.keep(4)
    assert cache.get_mask_sizes(3, 0) == (7, 0)
    assert cache.get_max_length() == -1


def test_layers_without_rows_are_left_alone():
    cache = KvCache([False, True, True])
    cache.update(*rows(0, 5), 1)  # the last layer has not been run yet
    cache.keep(2, [1])
    assert cache.get_seq_length() == 3
    assert numbers_in(cache.layers[1]) == [0, 1, 3]


def test_the_dtype_is_that_of_the_model():
    cache = KvCache([True])
    keys, values = rows(0, 3)
    keys, values = cache.update(keys.bfloat16(), values.bfloat16(), 0)
    assert keys.dtype == values.dtype == torch.bfloat16


def test_copies_bring_rows_back():
    cache = filled(5)
    copies = cache.copy(3)
    cache.keep(1)
    cache.update(*rows(9, 1), 0)
    cache.restore(copies)
    assert all(numbers_in(layer) == [0, 1, 2] for layer in cache.layers)
    cache.restore(KvCache([True, True]).copy(0))
    assert cache.get_seq_length() == 0


def test_the_bytes_of_rows_are_those_of_all_layers():
    assert KvCache([True]).num_bytes(7) == 0
    assert filled(5).num_bytes(3) == 2 * 3 * HEADS * (KEY_DIM + VALUE_DIM) * 4
