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
from treesnake.kernels.cpu.linear import REPLACE, TILES, dot_tile, linear_rows


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

    These are (rows, capacity), (rows, head_dim) and (rows,), with `SPARE_ROWS` for whole tiles.
    """

    scores: np.ndarray
    mixed: np.ndarray
    totals: np.ndarray


SEES_ALL = 2**62
"""The window of a layer without one, in positions."""

MIX_ROWS = 4 if simd.LANES == 16 else 2
"""Queries that share the loads of values; the last ones share them with rows that do not matter."""

SPARE_ROWS = max(TILES[0][0], MIX_ROWS)
"""Rows that the last tile may go beyond what is asked for."""

MIX_VECTORS = 4
"""Vectors of a query's output that are held in registers."""

UNSEEN = np.float32(-np.inf)

_dot = dot_tile(1, 1)


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


def _mix_tile(num_rows: int, num_vectors: int) -> Any:
    """Builds the intrinsic that adds weighted values to some vectors of some rows of `out`.

    `out[row + r, column:]` += weights[row + r, start + i] * values[value_row + i, column:] for i in
    0..count, one after another.
    """

    @intrinsic
    def mix(typing_context, weights, row, start, values, value_row, count, out, column):
        def generate(context, builder, signature, arguments):
            weights, values, out = (
                context.make_array(signature.args[n])(context, builder, arguments[n])
                for n in (0, 3, 6)
            )
            row, start, value_row, count, column = (arguments[n] for n in (1, 2, 4, 5, 7))
            element = signature.args[3].dtype
            width = cgutils.unpack_tuple(builder, values.shape)[1]
            first_value = builder.gep(simd.row_pointer(builder, values, value_row), [column])
            weight_rows = [
                builder.gep(simd.row_pointer(builder, weights, row, offset), [start])
                for offset in range(num_rows)
            ]
            out_pointers = [
                builder.gep(
                    simd.row_pointer(builder, out, row, offset),
                    [builder.add(column, simd.index(number * simd.LANES))],
                )
                for offset in range(num_rows)
                for number in range(num_vectors)
            ]

            def add_values(step: Any, sums: Sequence[Any]) -> list[Any]:
                value = builder.gep(first_value, [builder.mul(step, width)])
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

            starts = [simd.load(builder, pointer, types.float32) for pointer in out_pointers]
            sums = simd.loop(builder, simd.index(0), count, 1, starts, add_values)
            for total, pointer in zip(sums, out_pointers, strict=True):
                simd.store(builder, total, pointer, types.float32)
            return context.get_dummy_value()

        position = types.intp
        signature = types.void(
            weights, position, position, values, position, position, out, position
        )
        return signature, generate

    return mix


_mix_many_wide = _mix_tile(MIX_ROWS, MIX_VECTORS)
_mix_many_narrow = _mix_tile(MIX_ROWS, 1)
_mix_one_wide = _mix_tile(1, MIX_VECTORS)
_mix_one_narrow = _mix_tile(1, 1)


@kernel
def _mix_rows(weights, row, start, values, value_row, count, out):
    """Adds weighted values to `MIX_ROWS` rows of `out`."""
    column = 0
    while column + MIX_VECTORS * simd.LANES <= values.shape[1]:
        _mix_many_wide(weights, row, start, values, value_row, count, out, column)
        column += MIX_VECTORS * simd.LANES
    while column < values.shape[1]:
        _mix_many_narrow(weights, row, start, values, value_row, count, out, column)
        column += simd.LANES


@kernel
def _mix_row(weights, row, start, values, value_row, count, out):
    """Adds weighted values to one row of `out`."""
    column = 0
    while column + MIX_VECTORS * simd.LANES <= values.shape[1]:
        _mix_one_wide(weights, row, start, values, value_row, count, out, column)
        column += MIX_VECTORS * simd.LANES
    while column < values.shape[1]:
        _mix_one_narrow(weights, row, start, values, value_row, count, out, column)
        column += simd.LANES


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
def _weigh_row(queries, row, keys, view, node, window, begin, scores):
    """Turns the scores of a query into weights; returns what the weighted sum is to be divided by.

    The scores of contiguous positions are there already, those of other ancestors are added.
    Positions from `begin` on that are not seen get the weight 0. `begin` is a multiple of
    `simd.PADDING`, so that every position is always summed in the same lane.
    """
    position = view.positions[node]
    for seen in range(max(begin, view.contiguous[node]), position + 1):
        key_row = view.path_rows[node, seen - view.length]
        _dot(queries, row, keys, key_row, key_row + 1, scores, seen, REPLACE)
    end = (position // simd.PADDING + 1) * simd.PADDING
    scores[row, begin : _first_seen(position, window)] = UNSEEN
    scores[row, position + 1 : end] = UNSEEN
    peak = _largest(scores, row, begin, end)
    return _exponentiate(scores, row, begin, end, peak)


@kernel
def _finish_row(scores, row, view, node, begin, values, mixed):
    """Adds the weighted values of positions from `begin` on: first contiguous ones, then others."""
    contiguous = view.contiguous[node]
    _mix_row(scores, row, begin, values, begin, contiguous - begin, mixed)
    for position in range(max(begin, contiguous), view.positions[node] + 1):
        value_row = view.path_rows[node, position - view.length]
        _mix_row(scores, row, position, values, value_row, 1, mixed)


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
        shared = max(shared, view.contiguous[node])
    first = first // simd.PADDING * simd.PADDING

    linear_rows(queries, num_rows, keys, first, shared, scores, REPLACE)
    for row in range(num_rows):
        node = (begin + row) // group
        totals[row] = _weigh_row(queries, row, keys, view, node, window, first, scores)

    mixed[:num_rows] = np.float32(0)
    for start in range(0, num_rows, MIX_ROWS):
        stop, common = min(start + MIX_ROWS, num_rows), first
        if stop - start > 1:
            common = shared
            for row in range(start, stop):
                common = min(common, view.contiguous[(begin + row) // group])
            common = max(first, common)
            _mix_rows(scores, start, first, values, first, common - first, mixed)
        for row in range(start, stop):
            _finish_row(scores, row, view, (begin + row) // group, common, values, mixed)

    width = values.shape[1]
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
