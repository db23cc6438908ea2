"""Matrix products whose bits do not depend on how many rows are multiplied at once.

Scoring a token tree multiplies few rows with large weights. BLAS chooses another order of summation
for every number of rows, so a token's logits change in their last bits when more tokens are scored
with it, and greedy decoding of a tree can leave plain decoding at a tie. Here every output is

    sum over lanes l of (x[l] * w[l] + x[l + LANES] * w[l + LANES] + ...),

fused multiply-adds in this order and the lanes added by halves (`simd.add_lanes`), in whatever tile
it is computed. A tile of several rows and outputs holds its sums in registers and runs along the
inner axis once; one row alone takes several outputs, to have enough sums in flight.

Weights are (outputs, inputs), row-major, the inner axis padded with zeros to a multiple of
`simd.PADDING`; as float32, float16 or bfloat16. Activations and sums are float32. Weights in
integers are `treesnake.kernels.cpu.grouped`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.jit import kernel

TILES = ((8, 3), (6, 4), (4, 4), (2, 8), (1, 4)) if simd.LANES == 16 else ((4, 3), (2, 3), (1, 2))
"""Rows and outputs of each tile, largest first: as many sums as there are registers to hold them,
and enough to keep the multipliers busy for the four cycles that a sum waits for the one before.
Without AVX-512 one and two rows wait for memory: few outputs, whose weights are nearly one stream,
come faster than many short rows in turn.

The last tile of rows may be wider than what is left of them (three rows cost what four do), so the
arrays have rows to spare, see `padded_rows`."""

_TILE_COLUMNS = dict(TILES)
"""The outputs of a tile of so many rows."""

COLUMN_BLOCK = 48
"""Outputs that are done for all rows before the next: a multiple of each tile's outputs, and few
enough that their weights are still in the cache for the second tile of rows."""

PREFETCH_BYTES = 8192
"""How far ahead weights are asked for. A tile reads several short rows in turn, a pattern that
hardware does not recognise although the rows together are one stream."""

CACHE_LINE = 64


@intrinsic
def _multiply(typing_context, x, num_rows, weight, begin, end, out, adds):
    """Multiplies the first rows of `x` with rows begin..end of `weight`, tile by tile.

    The dot products go to the same columns of `out`, or are added to them. Arrays are row-major
    and have two axes.
    """

    def generate(context, builder, signature, arguments):
        x, weight, out = (
            context.make_array(signature.args[n])(context, builder, arguments[n]) for n in (0, 2, 5)
        )
        num_rows, begin, end, adds = (arguments[n] for n in (1, 3, 4, 6))
        element, width = signature.args[2].dtype, cgutils.unpack_tuple(builder, x.shape)[1]

        def multiply_tile(row: Any, column: Any, size: int, num_columns: int) -> None:
            columns = [builder.add(column, simd.index(n)) for n in range(num_columns)]
            sums = _dot_products(
                builder,
                [simd.row_pointer(builder, x, row, offset) for offset in range(size)],
                [
                    # Columns beyond the end repeat the last one and are not written.
                    simd.row_pointer(builder, weight, simd.smaller_index(builder, number, end))
                    for number in columns
                ],
                width,
                element,
            )
            target = _Target(
                [
                    builder.gep(simd.row_pointer(builder, out, row, offset), [column])
                    for offset in range(size)
                ],
                adds,
            )
            num_left = builder.sub(end, column)
            whole = builder.icmp_signed("<=", simd.index(num_columns), num_left)
            with builder.if_else(whole, likely=True) as (then, otherwise):
                with then:
                    target.write(builder, sums, 0)
                with otherwise:
                    _write_some(builder, target, sums, num_left)

        def multiply_rows(row: Any, size: int) -> None:
            num_columns = _TILE_COLUMNS[size]

            def run(column: Any, _: Sequence[Any]) -> list[Any]:
                multiply_tile(row, column, size, num_columns)
                return []

            simd.loop(builder, begin, end, num_columns, [], run)

        simd.sweep_rows(builder, simd.index(0), num_rows, tuple(_TILE_COLUMNS), multiply_rows)
        return context.get_dummy_value()

    position = types.intp
    return types.void(x, position, weight, position, position, out, types.boolean), generate


def _dot_products(
    builder: Any, x_rows: list[Any], weight_rows: list[Any], width: Any, element: types.Type
) -> list[Any]:
    """Builds the loop along the inner axis; returns the dot products, a vector for each row."""

    def add_products(inner: Any, sums: Sequence[Any]) -> list[Any]:
        prefetch_rows(builder, weight_rows, inner, element)
        weights = [simd.load(builder, builder.gep(row, [inner]), element) for row in weight_rows]
        results: list[Any] = []
        for row in x_rows:
            inputs = simd.load(builder, builder.gep(row, [inner]), types.float32)
            for values in weights:
                total = sums[len(results)]
                results.append(simd.fused_multiply_add(builder, inputs, values, total))
        return results

    zeros = [simd.ZERO] * (len(x_rows) * len(weight_rows))
    sums = simd.loop(builder, simd.index(0), width, simd.LANES, zeros, add_products)
    return simd.add_lanes_by_row(builder, sums, len(weight_rows))


@dataclass(frozen=True)
class _Target:
    """Where a tile is written: a pointer for each row."""

    rows: list[Any]
    adds: Any

    def write(self, builder: Any, sums: list[Any], offset: int) -> None:
        """Builds the code that writes a vector of sums to each row, `offset` columns on."""
        kind = sums[0].type
        column = simd.index(offset)
        for start, product in zip(self.rows, sums, strict=True):
            pointer = builder.gep(start, [column])
            total = builder.fadd(_load_as(builder, pointer, kind), product)
            result = builder.select(self.adds, total, product)
            builder.store(result, builder.bitcast(pointer, kind.as_pointer()), align=4)


def _load_as(builder: Any, pointer: Any, kind: Any) -> Any:
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=4)


def _write_some(builder: Any, target: _Target, sums: list[Any], num_columns: Any) -> None:
    """Builds the code that writes the first `num_columns` columns, one by one."""
    for offset in range(sums[0].type.count):
        with builder.if_then(builder.icmp_signed("<", simd.index(offset), num_columns)):
            column = [simd.shuffle(builder, row, row, [offset]) for row in sums]
            target.write(builder, column, offset)


def prefetch_rows(builder: Any, rows: list[Any], inner: Any, element: types.Type) -> None:
    """Prefetches as many bytes as one step reads, where the rows are taken as one stream."""
    step_bytes = len(rows) * simd.element_size(element)
    start = builder.bitcast(rows[0], simd.BYTE_POINTER)
    offset = builder.add(builder.mul(inner, simd.index(step_bytes)), simd.index(PREFETCH_BYTES))
    for line in range(0, step_bytes * simd.LANES, CACHE_LINE):
        simd.prefetch(builder, builder.gep(start, [builder.add(offset, simd.index(line))]))


# Not literals, for each of which numba would compile a function of its own.
REPLACE, ADD = np.bool_(False), np.bool_(True)


@kernel
def linear_rows(x, num_rows, weight, begin, end, out, adds):
    """Computes outputs begin..end of a linear layer for the first rows of `x`.

    `out[:num_rows, begin:end]` gets the dot products with rows begin..end of `weight`, or they are
    added to it, such as to a residual stream.
    """
    for start in range(begin, end, COLUMN_BLOCK):
        stop = min(start + COLUMN_BLOCK, end)
        _multiply(x, num_rows, weight, start, stop, out, adds)


def padded_rows(num_rows: int) -> int:
    """Returns the rows that `x` and `out` need for `num_rows`: what whole tiles of rows cover."""
    row, sizes = 0, tuple(_TILE_COLUMNS)
    for size, num_left in zip(sizes, (*sizes[1:], 0), strict=True):
        while row + num_left < num_rows:
            row += size
    return row


@intrinsic
def widen_row(typing_context, values, row, out, out_row):
    """Writes a row of packed weights as floats to a row of `out`: an embedding."""

    def generate(context, builder, signature, arguments):
        values, row, out, out_row = arguments
        values = context.make_array(signature.args[0])(context, builder, values)
        out = context.make_array(signature.args[2])(context, builder, out)
        source = simd.row_pointer(builder, values, row)
        target = simd.row_pointer(builder, out, out_row)

        def widen(column: Any, _: Sequence[Any]) -> list[Any]:
            element = signature.args[0].dtype
            vector = simd.load(builder, builder.gep(source, [column]), element)
            simd.store(builder, vector, builder.gep(target, [column]), types.float32)
            return []

        width = cgutils.unpack_tuple(builder, values.shape)[1]
        simd.loop(builder, simd.index(0), width, simd.LANES, [], widen)
        return context.get_dummy_value()

    position = types.intp
    return types.void(values, position, out, position), generate


def padded(width: int) -> int:
    """Returns the width that rows of `width` values are padded to."""
    return -(-width // simd.PADDING) * simd.PADDING
