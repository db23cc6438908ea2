"""Texts that run together keep their rows apart, and lie together."""

import torch

from treesnake.states.kv import ROWS_PER_BLOCK, KvCache
from treesnake.states.shared_kv import NewRows, SharedKvCache

HEADS, KEY_DIM, VALUE_DIM = 2, 3, 5


def rows(*numbers):
    """Rows of one text whose every number is the given one."""
    column = torch.tensor(numbers, dtype=torch.float32)[None, None, :, None]
    shape = (1, HEADS, len(numbers))
    return column.expand(*shape, KEY_DIM), column.expand(*shape, VALUE_DIM)


def text(*numbers):
    cache = KvCache([True])
    if numbers:
        cache.update(*rows(*numbers), 0)
    return cache


def run(caches, added):
    """Appends rows to some texts in one pass, each filled up to the longest with 99."""
    most = max(map(len, added))
    padded = [rows(*each, *[99] * (most - len(each))) for each in added]
    keys, values = (torch.cat(each) for each in zip(*padded, strict=True))
    before = tuple(cache.get_seq_length() for cache in caches)
    shared = SharedKvCache(caches, NewRows(before, tuple(map(len, added))))
    assert shared.get_mask_sizes(most, 0)[0] == max(
        held + len(each) for held, each in zip(before, added, strict=True)
    )
    return shared.update(keys, values, 0)


def numbers_in(cache):
    (layer,) = cache.layers
    keys, values = layer.first(layer.get_seq_length())
    assert keys.shape[:2] == (1, HEADS)
    assert torch.equal(keys[0, 0, :, 0], values[0, -1, :, -1])
    return [int(number) for number in keys[0, 0, :, 0]]


def test_each_text_gets_its_own_rows_and_no_filling():
    caches = [text(1, 2, 3), text(), text(4)]
    keys, values = run(caches, [[10], [20, 21, 22], [30, 31]])
    assert [numbers_in(cache) for cache in caches] == [[1, 2, 3, 10], [20, 21, 22], [4, 30, 31]]
    assert keys[:, 0, :, 0].tolist() == [[1, 2, 3, 10], [20, 21, 22, 0], [4, 30, 31, 0]]
    assert torch.equal(keys[:, :, :, 0], values[:, :, :, 0])


def test_the_same_texts_again_are_not_copied():
    caches = [text(1, 2, 3), text(4)]
    first, _ = run(caches, [[10], [20, 21]])
    caches[1].keep(1, [1])
    second, _ = run(caches, [[11], [22]])
    assert first.data_ptr() == second.data_ptr()
    assert [numbers_in(cache) for cache in caches] == [[1, 2, 3, 10, 11], [4, 21, 22]]


def test_a_text_goes_on_alone_or_with_others_and_leaves_those_behind_unchanged():
    caches = [text(1), text(2), text(3)]
    run(caches, [[10], [20], [30]])
    caches[1].update(*rows(21), 0)
    run([caches[2], caches[0]], [[31], [11]])
    run(caches[:2], [[12], [22]])
    assert list(map(numbers_in, caches)) == [[1, 10, 11, 12], [2, 20, 21, 22], [3, 30, 31]]


def test_texts_outgrow_their_block_together_and_alone():
    caches = [text(1), text(2)]
    run(caches, [[10], [20]])
    many = list(range(ROWS_PER_BLOCK))
    run(caches, [many, [21]])
    assert numbers_in(caches[0]) == [1, 10, *many]
    caches[1].update(*rows(*many, *many), 0)
    assert numbers_in(caches[1]) == [2, 20, 21, *many, *many]
    run(caches, [[11], [22]])
    assert list(map(len, map(numbers_in, caches))) == [ROWS_PER_BLOCK + 3, 2 * ROWS_PER_BLOCK + 4]


def test_layers_without_rows_are_left_alone():
    caches = [KvCache([False, True]) for _ in range(2)]
    new_rows = NewRows((0, 0), (1, 1))
    keys, values = (torch.cat([each, each]) for each in rows(5))
    SharedKvCache(caches, new_rows).update(keys, values, 1)
    assert [cache.get_seq_length() for cache in caches] == [1, 1]
