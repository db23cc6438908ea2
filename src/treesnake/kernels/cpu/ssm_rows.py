"""The selective state space of Mamba-1, compiled: a range of channels at a time.

Names are those of `treesnake.kernels.reference.ssm`. Here the axes of channels and of the state are
padded with zeros to whole vectors; a state is (channels, state_dim), so that a vector or two hold
a channel's. A node's state is made by the same operations in the same order in a text, from copies
and by sums, so that these give the same bits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.jit import kernel

CHANNELS_AT_ONCE = 4
"""Channels whose exponentials and sums are interleaved; a divisor of `simd.PADDING`."""

REPLAYED_CHANNELS = 8
"""Channels of which every node's state is kept in the first cache while a tree is replayed."""


def _advance_tile(num_channels: int, *, has_output: bool) -> Any:
    """Builds the intrinsic that steps some channels of one node.

    It reads row `row` of `dt`, `x` and `B`, and the state of `num_channels` channels from cell
    `source_cell` on, where a cell is one channel's state in an array of any number of axes. It
    writes the new state to `target_cell`, and, if it has an output, the products of the state with
    `C[read_row, column:]` to `y[read_row, channel:]`.
    """

    @intrinsic
    def advance(
        typing_context,
        rates,
        channel,
        dt,
        x,
        B,
        row,
        source,
        source_cell,
        target,
        target_cell,
        C,
        column,
        y,
        read_row,
    ):
        def generate(context, builder, signature, arguments):
            rates, dt, x, B, source, target, C, y = (
                context.make_array(signature.args[place])(context, builder, arguments[place])
                for place in (0, 2, 3, 4, 6, 8, 10, 12)
            )
            channel, row, source_cell, target_cell, column, read_row = (
                arguments[place] for place in (1, 5, 7, 9, 11, 13)
            )
            width = cgutils.unpack_tuple(builder, rates.shape)[1]
            steps, amounts = steps_and_amounts(builder, dt, x, row, channel, num_channels)
            directions = simd.row_pointer(builder, B, row)
            rate_cells, sources, targets = (
                cell_pointers(builder, array, cell, width, num_channels)
                for array, cell in ((rates, channel), (source, source_cell), (target, target_cell))
            )
            readers = builder.gep(simd.row_pointer(builder, C, read_row), [column])

            def step(place: Any, sums: Sequence[Any]) -> list[Any]:
                def load(pointer: Any) -> Any:
                    return simd.load(builder, builder.gep(pointer, [place]), types.float32)

                direction, reader = load(directions), load(readers) if has_output else None
                results = []
                for n in range(num_channels):
                    exponent = builder.fmul(steps[n], load(rate_cells[n]))
                    decay = simd.exponential(builder, exponent)
                    written = builder.fmul(amounts[n], direction)
                    state = simd.fused_multiply_add(builder, decay, load(sources[n]), written)
                    pointer = builder.gep(targets[n], [place])
                    simd.store(builder, state, pointer, types.float32)
                    if has_output:
                        results.append(simd.fused_multiply_add(builder, state, reader, sums[n]))
                return results

            carried = [simd.ZERO] * num_channels if has_output else []
            sums = simd.loop(builder, simd.index(0), width, simd.LANES, carried, step)
            if has_output:
                outputs = builder.gep(simd.row_pointer(builder, y, read_row), [channel])
                for n, total in enumerate(simd.add_lanes(builder, sums)):
                    builder.store(total, builder.gep(outputs, [simd.index(n)]))
            return context.get_dummy_value()

        at = types.intp
        signature = types.void(rates, at, dt, x, B, at, source, at, target, at, C, at, y, at)
        return signature, generate

    return advance


def cell_pointers(builder: Any, array: Any, cell: Any, width: Any, number: int) -> list[Any]:
    """Returns the addresses of some cells of `width` numbers, whatever axes the array has."""
    return [
        builder.gep(array.data, [builder.mul(builder.add(cell, simd.index(n)), width)])
        for n in range(number)
    ]


def steps_and_amounts(
    builder: Any, dt: Any, x: Any, row: Any, channel: Any, num_channels: int
) -> tuple[list[Any], list[Any]]:
    """Returns dt and dt * x of each channel in all lanes."""
    steps: list[Any] = []
    amounts: list[Any] = []
    dt_row, x_row = (
        builder.gep(simd.row_pointer(builder, array, row), [channel]) for array in (dt, x)
    )
    for n in range(num_channels):
        size = builder.load(builder.gep(dt_row, [simd.index(n)]))
        value = builder.load(builder.gep(x_row, [simd.index(n)]))
        steps.append(simd.splat(builder, size))
        amounts.append(simd.splat(builder, builder.fmul(size, value)))
    return steps, amounts


advance = _advance_tile(CHANNELS_AT_ONCE, has_output=True)
advance_silently = _advance_tile(CHANNELS_AT_ONCE, has_output=False)


class Selection(NamedTuple):
    """What the recurrence of a layer reads, a row for each token or node, and writes.

    `rates` is A. C of row r is `C[r, column:]`; `C` and `y` have rows for those nodes only whose
    outputs are wanted, the last ones, and a row to spare.
    """

    rates: np.ndarray
    dt: np.ndarray
    x: np.ndarray
    B: np.ndarray
    C: np.ndarray
    column: int
    y: np.ndarray


@kernel
def run_rows(selection, num_rows, committed, states, parents, begin, end):
    """Runs the newest nodes, each from its parent's state, and writes their states.

    `selection` has rows for the newest nodes only; `committed` is (1, channels, state_dim). With no
    parents at all the rows are a text, and move the committed state along.
    """
    rates, dt, x, B, C, column, y = selection
    num_channels, num_nodes = rates.shape[0], parents.shape[0]
    for row in range(num_rows):
        source, target, old, new = committed, committed, 0, 0
        if num_nodes > 0:
            target, new = states, (num_nodes - num_rows + row) * num_channels
            parent = parents[num_nodes - num_rows + row]
            if parent >= 0:
                source, old = states, parent * num_channels
        for at in range(begin, end, CHANNELS_AT_ONCE):
            advance(rates, at, dt, x, B, row, source, old + at, target, new + at, C, column, y, row)


@kernel
def run_path(rates, dt, x, B, state, begin, end):
    """Moves a state along a path, without outputs."""
    for at in range(begin, end, CHANNELS_AT_ONCE):
        for row in range(dt.shape[0]):
            advance_silently(rates, at, dt, x, B, row, state, at, state, at, B, 0, B, 0)


@kernel
def run_sums(selection, num_rows, committed, parents, needed, scratch, begin, end):
    """Runs the newest nodes from the inputs of their ancestors, which are replayed.

    The sum over a node's ancestors is the recurrence along its path. Prefixes are shared by keeping
    the states of a few channels for all nodes in `scratch` (nodes + 1, REPLAYED_CHANNELS,
    state_dim), which the first cache holds: more arithmetic, but hardly any memory. Nodes that are
    not `needed` are no ancestors of the newest. `y` has a row more than `C`, for outputs that
    nobody wants.
    """
    rates, dt, x, B, C, column, y = selection
    num_nodes = parents.shape[0]
    first = num_nodes - num_rows
    for block in range(begin, end, REPLAYED_CHANNELS):
        for offset in range(REPLAYED_CHANNELS):
            for place in range(committed.shape[2]):
                scratch[num_nodes, offset, place] = committed[0, block + offset, place]
        for node in range(num_nodes):
            if needed[node]:
                parent = parents[node] if parents[node] >= 0 else num_nodes
                row = node - first if node >= first else num_rows
                for offset in range(0, REPLAYED_CHANNELS, CHANNELS_AT_ONCE):
                    at = block + offset
                    old = parent * REPLAYED_CHANNELS + offset
                    new = node * REPLAYED_CHANNELS + offset
                    advance(
                        rates, at, dt, x, B, node, scratch, old, scratch, new, C, column, y, row
                    )
