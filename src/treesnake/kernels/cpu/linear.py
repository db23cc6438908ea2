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

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.jit import inlined, kernel

TILES = ((8, 3), (6, 4), (4, 4), (2, 8), (1, 4)) if simd.LANES == 16 else ((4, 3), (2, 3), (1, 2))
"""Rows and outputs of each tile, largest first: as many sums as there are registers to hold them,
and enough to keep the multipliers busy for the four cycles that a sum waits for the one before.
Without AVX-512 one and two rows wait for memory: few outputs, whose weights are nearly one stream,
come faster than many short rows in turn.

The last tile of rows may be wider than what is left of them (three rows cost what four do), so the
arrays have rows to spare, see `padded_rows`."""

_REMAINDERS = (*(num_rows for num_rows, _ in TILES[1:]), 0)
"""The rows that each tile leaves to the smaller ones."""

COLUMN_BLOCK = 48
"""Outputs that are done for all rows before the next: a multiple of each tile's outputs, and few
enough that their weights are still in the cache for the second tile of rows."""

PREFETCH_BYTES = 8192
"""How far ahead weights are asked for. A tile reads several short rows in turn, a pattern that
hardware does not recognise although the rows together are one stream."""

CACHE_LINE = 64

ROWS_AT_ONCE = 1024
"""Rows of a weight that are rounded at once: what bounds the memory that rounding takes."""


def dot_tile(num_rows: int, num_columns: int) -> Any:
    """Builds the intrinsic for one tile of `num_rows` x `num_columns` dot products.

    It takes (x, row, weight, weight_row, end, out, column, adds). Rows of `x` from `row` on times
    rows of `weight` from `weight_row` on, but not from `end` on, go to `out[row:, column:]`, or are
    added to it. Arrays are row-major and have two axes.
    """

    @intrinsic
    def tile(typing_context, x, row, weight, weight_row, end, out, column, adds):
        def generate(context, builder, signature, arguments):
            x, weight, out = (
                context.make_array(signature.args[n])(context, builder, arguments[n])
                for n in (0, 2, 5)
            )
            row, weight_row, end, column, adds = (arguments[n] for n in (1, 3, 4, 6, 7))
            weight_rows = [builder.add(weight_row, simd.index(n)) for n in range(num_columns)]
            sums = _dot_products(
                builder,
                [simd.row_pointer(builder, x, row, offset) for offset in range(num_rows)],
                [
                    # Columns beyond the end repeat the last one and are not written.
                    simd.row_pointer(builder, weight, simd.smaller_index(builder, number, end))
                    for number in weight_rows
                ],
                cgutils.unpack_tuple(builder, x.shape)[1],
                signature.args[2].dtype,
            )
            target = _Target(
                [
                    builder.gep(simd.row_pointer(builder, out, row, offset), [column])
                    for offset in range(num_rows)
                ],
                adds,
            )
            num_left = builder.sub(end, weight_row)
            whole = builder.icmp_signed("<=", simd.index(num_columns), num_left)
            with builder.if_else(whole, likely=True) as (then, otherwise):
                with then:
                    target.write(builder, sums, 0)
                with otherwise:
                    _write_some(builder, target, sums, num_left)
            return context.get_dummy_value()

        position = types.intp
        signature = types.void(
            x, position, weight, position, position, out, position, types.boolean
        )
        return signature, generate

    return tile


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


def _row_sweep(num_rows: int, num_columns: int, remainder: int) -> Any:
    """Builds the kernel that does tiles of rows until only `remainder` are left, or fewer."""
    tile = dot_tile(num_rows, num_columns)

    @inlined
    def sweep(x, row, end_row, weight, begin, end, out, adds):
        while row + remainder < end_row:
            for column in range(begin, end, num_columns):
                tile(x, row, weight, column, end, out, column, adds)
            row += num_rows
        return row

    return sweep


def _one_after_another(first: Any, second: Any) -> Any:
    @inlined
    def both(x, row, end_row, weight, begin, end, out, adds):
        row = first(x, row, end_row, weight, begin, end, out, adds)
        return second(x, row, end_row, weight, begin, end, out, adds)

    return both


_all_rows = functools.reduce(
    _one_after_another,
    [_row_sweep(*tile, remainder) for tile, remainder in zip(TILES, _REMAINDERS, strict=True)],
)


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
        _all_rows(x, 0, num_rows, weight, start, stop, out, adds)


def padded_rows(num_rows: int) -> int:
    """Returns the rows that `x` and `out` need for `num_rows`: what whole tiles of rows cover."""
    row = 0
    for (tile_rows, _), remainder in zip(TILES, _REMAINDERS, strict=True):
        while row + remainder < num_rows:
            row += tile_rows
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


STORAGE = {
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.uint16),
    torch.bfloat16: np.dtype(np.int16),
}
"""The dtype under which numba sees an array of each kind of weight."""

BITS = {
    torch.float32: torch.float32,
    torch.float16: torch.uint16,
    torch.bfloat16: torch.int16,
}


def padded(width: int) -> int:
    """Returns the width that rows of `width` values are padded to."""
    return -(-width // simd.PADDING) * simd.PADDING


def write_weight(
    weight: Float[Tensor, "outputs inputs"], dtype: torch.dtype, values: np.ndarray
) -> None:
    """Rounds a weight to `dtype` into an array of its shape, such as a slice of a stack."""
    for begin in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        values[rows] = weight[rows].to(dtype).contiguous().view(BITS[dtype]).numpy()
