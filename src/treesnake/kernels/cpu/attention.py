"""Attention of tree nodes over a static cache, with the same bits wherever the nodes lie.

A node at position p sees positions 0..p: the committed ones, whose cache rows are their positions,
and its ancestors in the tree, whose rows come after the committed ones in the order of the nodes.
All sums run over *positions*: the scores of position p are the p-th of their row, a softmax adds
exponentials lane by lane in that order, and values are added one position after another. So a node
of a tree and the same path decoded token by token give the same bits, and so do any two ways to cut
a prompt into chunks.

A leading run of nodes that each follow the one before (a chain, or a chunk of a prompt) has rows
equal to positions as well; `contiguous` counts for every node the positions of which that is true,
and only the others are looked up one by one.

Scores and mixed values are the same kind of product: weights of one row times the rows of a block,
added one after another, with the outputs in vector lanes. For scores the block is some keys turned
over, so that a lane is a position: no sum goes across lanes, and all queries of a unit share them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.jit import kernel
from treesnake.kernels.cpu.linear import ADD, REPLACE, TILES, prefetch_rows


class TreeView(NamedTuple):
    """What each of the nodes of a call sees in the cache of one text, by position.

    `length` is the number of committed tokens of the text, `positions` (nodes,) that of each node.
    Positions below `contiguous` (nodes,) have cache rows of the same number; the row of a later
    position p on a node's path is `path_rows[node, p - length]`. The arrays have the nodes of all
    texts of the call.
    """

    length: int
    positions: np.ndarray
    contiguous: np.ndarray
    path_rows: np.ndarray


class Scratch(NamedTuple):
    """What one thread needs while it computes the attention of some rows.

    These are (head_dim, `KEY_BLOCK`) and (`PATH_BLOCK`, head_dim) of the cache's dtype, and
    (rows, capacity), (rows, head_dim) and (rows,) with `SPARE_ROWS` for whole tiles.
    """

    turned_keys: np.ndarray
    path_values: np.ndarray
    scores: np.ndarray
    mixed: np.ndarray
    totals: np.ndarray


SEES_ALL = 2**62
"""The window of a layer without one, in positions."""

MIX_ROWS = (6, 4, 3, 2, 1) if simd.LANES == 16 else (2, 1)
"""Queries that share the loads of a block, in each tile. Five share them with a row that does not
matter."""

SPARE_ROWS = max(TILES[0][0], MIX_ROWS[0])
"""Rows that the last tile may go beyond what is asked for."""

MIX_VECTORS = 4
"""Vectors of a query's output that are held in registers."""

KEY_BLOCK = 64
"""Positions whose keys are turned over at once: with the queries of a tile they fit into the first
level of cache."""

PATH_BLOCK = 16
"""Values of a path that are put side by side at once."""

VALUE_BLOCK = 256
"""Positions whose values are mixed for all queries before the next, so that they stay in cache."""

UNSEEN = np.float32(-np.inf)


@intrinsic
def _turn_keys(typing_context, keys, row, end, turned, column):
    """Writes rows of keys from `row` on as `simd.LANES` columns of `turned`.

    Rows from `end` on are those of the last one before.
    """

    def generate(context, builder, signature, arguments):
        keys, row, end, turned, column = arguments
        element = signature.args[0].dtype
        keys = context.make_array(signature.args[0])(context, builder, keys)
        turned = context.make_array(signature.args[3])(context, builder, turned)
        width = cgutils.unpack_tuple(builder, keys.shape)[1]
        numbers = [builder.add(row, simd.index(offset)) for offset in range(simd.LANES)]
        rows = [
            simd.row_pointer(builder, keys, simd.smaller_index(builder, number, end))
            for number in numbers
        ]

        def turn_square(inner: Any, _: Sequence[Any]) -> list[Any]:
            prefetch_rows(builder, rows, inner, element)
            raw = [simd.load_bits(builder, builder.gep(each, [inner]), element) for each in rows]
            for offset, vector in enumerate(simd.transposed(builder, raw)):
                target = simd.row_pointer(builder, turned, inner, offset)
                simd.store_bits(builder, vector, builder.gep(target, [column]))
            return []

        simd.loop(builder, simd.index(0), width, simd.LANES, [], turn_square)
        return context.get_dummy_value()

    position = types.intp
    return types.void(keys, position, position, keys, position), generate


@intrinsic
def _largest(typing_context, scores, row, begin, end):
    """Returns the largest of `scores[row, begin:end]`, a multiple of `simd.PADDING` long."""

    def generate(context, builder, signature, arguments):
        array, row, begin, end = arguments
        scores = context.make_array(signature.args[0])(context, builder, array)
        start = simd.row_pointer(builder, scores, row)

        def raise_peak(column: Any, peaks: Sequence[Any]) -> list[Any]:
            values = simd.load(builder, builder.gep(start, [column]), types.float32)
            return [simd.larger(builder, values, peaks[0])]

        lowest = [ir.Constant(simd.VECTOR, [float("-inf")] * simd.LANES)]
        peaks = simd.loop(builder, begin, end, simd.LANES, lowest, raise_peak)
        return simd.largest_lane(builder, peaks[0])

    position = types.intp
    return types.float32(scores, position, position, position), generate


@intrinsic
def _exponentiate(typing_context, scores, row, begin, end, peak):
    """Replaces `scores[row, begin:end]` by e**(score - peak) and returns their sum."""

    def generate(context, builder, signature, arguments):
        array, row, begin, end, peak = arguments
        scores = context.make_array(signature.args[0])(context, builder, array)
        start = simd.row_pointer(builder, scores, row)
        peak = simd.splat(builder, peak)

        def add_exponential(column: Any, sums: Sequence[Any]) -> list[Any]:
            pointer = builder.gep(start, [column])
            values = simd.load(builder, pointer, types.float32)
            weights = simd.exponential(builder, builder.fsub(values, peak))
            simd.store(builder, weights, pointer, types.float32)
            return [builder.fadd(sums[0], weights)]

        sums = simd.loop(builder, begin, end, simd.LANES, [simd.ZERO], add_exponential)
        return simd.add_lanes(builder, sums)[0]

    position = types.intp
    return types.float32(scores, position, position, position, types.float32), generate


@intrinsic
def _mix_rows(
    typing_context, weights, row, end_row, start, values, value_row, count, out, begin, width, adds
):
    """Mixes values to rows of `out`, from `row` to `end_row`, tile by tile.

    `out[row, begin : begin + width]`, or 0, += weights[row, start + i] * values[value_row + i] for
    i in 0..count, one after another. `width` is that of whole vectors.
    """

    def generate(context, builder, signature, arguments):
        weights, values, out = (
            context.make_array(signature.args[n])(context, builder, arguments[n]) for n in (0, 4, 7)
        )
        row, end_row, start, value_row, count, begin, width, adds = (
            arguments[n] for n in (1, 2, 3, 5, 6, 8, 9, 10)
        )
        element = signature.args[4].dtype
        stride = cgutils.unpack_tuple(builder, values.shape)[1]

        def mix_tile(row: Any, column: Any, num_rows: int, num_vectors: int) -> None:
            first_value = builder.gep(simd.row_pointer(builder, values, value_row), [column])
            weight_rows = [
                builder.gep(simd.row_pointer(builder, weights, row, offset), [start])
                for offset in range(num_rows)
            ]
            first_column = builder.add(begin, column)
            out_pointers = [
                builder.gep(
                    simd.row_pointer(builder, out, row, offset),
                    [builder.add(first_column, simd.index(number * simd.LANES))],
                )
                for offset in range(num_rows)
                for number in range(num_vectors)
            ]

            def add_values(step: Any, sums: Sequence[Any]) -> list[Any]:
                value = builder.gep(first_value, [builder.mul(step, stride)])
                vectors = [
                    simd.load(builder, builder.gep(value, [simd.index(n * simd.LANES)]), element)
                    for n in range(num_vectors)
                ]
                results: list[Any] = []
                for weight_row in weight_rows:
                    weight = simd.splat(builder, builder.load(builder.gep(weight_row, [step])))
                    for vector in vectors:
                        total = sums[len(results)]
                        results.append(simd.fused_multiply_add(builder, weight, vector, total))
                return results

            before = [simd.load(builder, pointer, types.float32) for pointer in out_pointers]
            starts = [builder.select(adds, vector, simd.ZERO) for vector in before]
            sums = simd.loop(builder, simd.index(0), count, 1, starts, add_values)
            for total, pointer in zip(sums, out_pointers, strict=True):
                simd.store(builder, total, pointer, types.float32)

        def mix_rows(row: Any, num_rows: int) -> None:
            def mix_columns(first: Any, end: Any, num_vectors: int) -> Any:
                def run(column: Any, _: Sequence[Any]) -> list[Any]:
                    mix_tile(row, column, num_rows, num_vectors)
                    return [builder.add(column, step)]

                step = simd.index(num_vectors * simd.LANES)
                return simd.loop(builder, first, end, num_vectors * simd.LANES, [first], run)[0]

            # A wide tile begins only where all of it lies within the width.
            narrower = simd.index((MIX_VECTORS - 1) * simd.LANES)
            column = mix_columns(simd.index(0), builder.sub(width, narrower), MIX_VECTORS)
            mix_columns(column, width, 1)

        simd.sweep_rows(builder, row, end_row, MIX_ROWS, mix_rows)
        return context.get_dummy_value()

    position = types.intp
    signature = types.void(
        weights,
        *(position, position, position),
        values,
        *(position, position),
        out,
        *(position, position),
        types.boolean,
    )
    return signature, generate


@kernel
def trace_path(ancestor_mask, node, view):
    """Fills in the view of a node from its row of the mask, one bool for each node of its tree."""
    position, contiguous = view.length, view.length
    for ancestor in range(ancestor_mask.shape[0]):
        if ancestor_mask[ancestor]:
            row = view.length + ancestor
            view.path_rows[node, position - view.length] = row
            if contiguous == position and position == row:
                contiguous += 1
            position += 1
    view.positions[node] = position - 1
    view.contiguous[node] = contiguous


@kernel
def _first_seen(position, window):
    return max(0, position + 1 - window)


@kernel
def _score_rows(queries, num_rows, keys, first, end, scratch):
    """Computes the scores of rows first..end of the cache, and of some more to whole vectors."""
    turned, scores = scratch.turned_keys, scratch.scores
    for begin in range(first, end, KEY_BLOCK):
        width = 0
        while width < min(KEY_BLOCK, end - begin):
            _turn_keys(keys, begin + width, end, turned, width)
            width += simd.LANES
        inner = keys.shape[1]
        _mix_rows(queries, 0, num_rows, 0, turned, 0, inner, scores, begin, width, REPLACE)


@kernel
def _weigh_row(scores, row, view, node, window, begin):
    """Turns the scores of cache rows into weights of positions; returns what these add up to.

    Positions from `begin` on that are not seen get the weight 0. `begin` is a multiple of
    `simd.PADDING`, so that every position is always summed in the same lane.
    """
    position = view.positions[node]
    for seen in range(max(begin, view.contiguous[node]), position + 1):
        # A path's rows ascend, and none lies before its position: what is still needed stays.
        scores[row, seen] = scores[row, view.path_rows[node, seen - view.length]]
    end = (position // simd.PADDING + 1) * simd.PADDING
    scores[row, begin : _first_seen(position, window)] = UNSEEN
    scores[row, position + 1 : end] = UNSEEN
    peak = _largest(scores, row, begin, end)
    return _exponentiate(scores, row, begin, end, peak)


@kernel
def _mix_path(scores, row, end_row, view, node, begin, values, scratch):
    """Adds the weighted values of positions from `begin` on for the queries of one node.

    These are no committed positions: their values are put side by side.
    """
    on_path, width = scratch.path_values, values.shape[1]
    end = view.positions[node] + 1
    for start in range(begin, end, PATH_BLOCK):
        count = min(PATH_BLOCK, end - start)
        for number in range(count):
            value_row = view.path_rows[node, start + number - view.length]
            for column in range(width):
                on_path[number, column] = values[value_row, column]
        _mix_rows(scores, row, end_row, start, on_path, 0, count, scratch.mixed, 0, width, ADD)


@kernel
def attend(queries, begin, end, group, keys, values, view, window, scratch, out, head):
    """Computes rows begin..end of the attention of one key-value head.

    `queries` (rows, head_dim) has the `group` scaled queries of node 0, then those of node 1, ....
    `keys` and `values` (capacity, head_dim) are this head's cache of one text, the nodes' own rows
    included; all of the rows belong to nodes of that text.
    `window` bounds how many positions are seen, the own one included. The result of query g of
    node t goes to `out[t, (head * group + g) * head_dim :]`.
    """
    scores, mixed, totals = scratch.scores, scratch.mixed, scratch.totals
    queries = queries[begin:]
    num_rows = end - begin
    first_node, last_node = begin // group, (end - 1) // group
    first, shared = view.positions[first_node], view.contiguous[first_node]
    for node in range(first_node, last_node + 1):
        first = min(first, _first_seen(view.positions[node], window))
        shared = min(shared, view.contiguous[node])
    first = first // simd.PADDING * simd.PADDING
    shared = max(first, shared)

    last_row = view.path_rows[last_node, view.positions[last_node] - view.length]
    _score_rows(queries, num_rows, keys, first, last_row + 1, scratch)
    for row in range(num_rows):
        totals[row] = _weigh_row(scores, row, view, (begin + row) // group, window, first)

    mixed[:num_rows] = np.float32(0)
    width = values.shape[1]
    for start in range(first, shared, VALUE_BLOCK):
        count = min(VALUE_BLOCK, shared - start)
        _mix_rows(scores, 0, num_rows, start, values, start, count, mixed, 0, width, ADD)
    for node in range(first_node, last_node + 1):
        row, end_row = max(node * group - begin, 0), min((node + 1) * group, end) - begin
        _mix_path(scores, row, end_row, view, node, shared, values, scratch)

    for row in range(num_rows):
        node, member = divmod(begin + row, group)
        first_column = (head * group + member) * width
        for column in range(width):
            out[node, first_column + column] = mixed[row, column] / totals[row]


@intrinsic
def keep_row(typing_context, x, row, begin, cache, cache_row):
    """Writes a row of `cache`, rounded to its dtype, from `x[row, begin:]`."""

    def generate(context, builder, signature, arguments):
        x, row, begin, cache, cache_row = arguments
        x = context.make_array(signature.args[0])(context, builder, x)
        cache = context.make_array(signature.args[3])(context, builder, cache)
        source = builder.gep(simd.row_pointer(builder, x, row), [begin])
        target = simd.row_pointer(builder, cache, cache_row)
        width = cgutils.unpack_tuple(builder, cache.shape)[1]

        def copy(column: Any, _: Sequence[Any]) -> list[Any]:
            vector = simd.load(builder, builder.gep(source, [column]), types.float32)
            element = signature.args[3].dtype
            simd.store(builder, vector, builder.gep(target, [column]), element)
            return []

        simd.loop(builder, simd.index(0), width, simd.LANES, [], copy)
        return context.get_dummy_value()

    position = types.intp
    return types.void(x, position, position, cache, position), generate
