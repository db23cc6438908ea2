"""The selective state space of Mamba-1, compiled: a range of channels at a time.

Names are those of `treesnake.kernels.reference.ssm`. Here the axes of channels and of the state are
padded with zeros to whole vectors. A *cell* is one channel's state, a vector or two; states are
rows of cells, those of all nodes one after another. A node's state is made by the same operations
in the same order in a text, from copies and by sums, so that these give the same bits.
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


class SsmSelection(NamedTuple):
    """What the recurrence of a layer reads for one text, and writes.

    `dt`, `x` and `B` have a row for each token or node of the text. `C` and `y` have a row for each
    row of the pass, of which those of the text's tokens or newest nodes begin at `first_row`, and a
    row to spare. C of a row r is `C[r, column:]`.
    """

    A: np.ndarray
    dt: np.ndarray
    x: np.ndarray
    B: np.ndarray
    C: np.ndarray
    column: int
    y: np.ndarray
    first_row: int


def members(context: Any, builder: Any, kind: Any, value: Any) -> dict[str, Any]:
    """Returns the arrays and numbers that a `NamedTuple` has, by name."""
    found: dict[str, Any] = {}
    for number, (name, member) in enumerate(zip(kind.fields, kind.types, strict=True)):
        part = builder.extract_value(value, number)
        is_array = isinstance(member, types.Array)
        found[name] = context.make_array(member)(context, builder, part) if is_array else part
    return found


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


def _advance_tile(num_channels: int, *, has_output: bool) -> Any:
    """Builds the intrinsic that steps some channels of one token or node.

    It reads row `row` of `dt`, `x` and `B`, and the state of `num_channels` channels from cell
    `old` of `source` on. It writes the new state from cell `new` of `target` on, and, if it has an
    output, the products of the state with C of row `read_row` to that row of `y`.
    """

    @intrinsic
    def advance(typing_context, selection, channel, row, source, old, target, new, read_row):
        def generate(context, builder, signature, arguments):
            given = members(context, builder, signature.args[0], arguments[0])
            source, target = (
                context.make_array(signature.args[argument])(context, builder, arguments[argument])
                for argument in (3, 5)
            )
            channel, row, old, new, read_row = (arguments[argument] for argument in (1, 2, 4, 6, 7))
            width = cgutils.unpack_tuple(builder, given["A"].shape)[1]
            steps, amounts = steps_and_amounts(
                builder, given["dt"], given["x"], row, channel, num_channels
            )
            directions = simd.row_pointer(builder, given["B"], row)
            rates, sources, targets = (
                cell_pointers(builder, array, cell, width, num_channels)
                for array, cell in ((given["A"], channel), (source, old), (target, new))
            )
            readers = builder.gep(
                simd.row_pointer(builder, given["C"], read_row), [given["column"]]
            )

            def step(offset: Any, sums: Sequence[Any]) -> list[Any]:
                def load(pointer: Any) -> Any:
                    return simd.load(builder, builder.gep(pointer, [offset]), types.float32)

                direction, reader = load(directions), load(readers) if has_output else None
                results = []
                for n in range(num_channels):
                    exponent = builder.fmul(steps[n], load(rates[n]))
                    decay = simd.exponential(builder, exponent)
                    written = builder.fmul(amounts[n], direction)
                    state = simd.fused_multiply_add(builder, decay, load(sources[n]), written)
                    pointer = builder.gep(targets[n], [offset])
                    simd.store(builder, state, pointer, types.float32)
                    if has_output:
                        results.append(simd.fused_multiply_add(builder, state, reader, sums[n]))
                return results

            carried = [simd.ZERO] * num_channels if has_output else []
            sums = simd.loop(builder, simd.index(0), width, simd.LANES, carried, step)
            if has_output:
                outputs = builder.gep(simd.row_pointer(builder, given["y"], read_row), [channel])
                for n, total in enumerate(simd.add_lanes(builder, sums)):
                    builder.store(total, builder.gep(outputs, [simd.index(n)]))
            return context.get_dummy_value()

        at = types.intp
        return types.void(selection, at, at, source, at, target, at, at), generate

    return advance


advance = _advance_tile(CHANNELS_AT_ONCE, has_output=True)
advance_silently = _advance_tile(CHANNELS_AT_ONCE, has_output=False)


@kernel
def run_rows(selection, num_rows, committed, states, parents, begin, end):
    """Runs the newest nodes, each from its parent's state, and writes their states.

    `selection` has rows for the newest nodes only; `committed` is one state. With no parents at all
    the rows are a text, and move the committed state along.
    """
    num_channels, num_nodes = selection.A.shape[0], parents.shape[0]
    for row in range(num_rows):
        source, target, old, new = committed, committed, 0, 0
        if num_nodes > 0:
            target, new = states, (num_nodes - num_rows + row) * num_channels
            parent = parents[num_nodes - num_rows + row]
            if parent >= 0:
                source, old = states, parent * num_channels
        read_row = selection.first_row + row
        for at in range(begin, end, CHANNELS_AT_ONCE):
            advance(selection, at, row, source, old + at, target, new + at, read_row)


@kernel
def run_path(selection, state, path, begin, end):
    """Moves a state along a path of nodes, without outputs."""
    for at in range(begin, end, CHANNELS_AT_ONCE):
        for node in path:
            advance_silently(selection, at, node, state, at, state, at, 0)


@kernel
def run_sums(selection, num_rows, committed, parents, needed, scratch, begin, end):
    """Runs the newest nodes from the inputs of their ancestors, which are replayed.

    The sum over a node's ancestors is the recurrence along its path. Prefixes are shared by keeping
    the states of a few channels for all nodes in `scratch` (nodes + 1, REPLAYED_CHANNELS,
    state_dim), which the first cache holds: more arithmetic, but hardly any memory. Nodes that are
    not `needed` are no ancestors of the newest. Outputs that nobody wants go to the row after those
    of the newest nodes, which is to spare or belongs to a text that is run afterwards.
    """
    num_nodes = parents.shape[0]
    first = num_nodes - num_rows
    for block in range(begin, end, REPLAYED_CHANNELS):
        for offset in range(REPLAYED_CHANNELS):
            for column in range(committed.shape[1]):
                scratch[num_nodes, offset, column] = committed[block + offset, column]
        for node in range(num_nodes):
            if needed[node]:
                parent = parents[node] if parents[node] >= 0 else num_nodes
                row = selection.first_row + (node - first if node >= first else num_rows)
                for offset in range(0, REPLAYED_CHANNELS, CHANNELS_AT_ONCE):
                    old = parent * REPLAYED_CHANNELS + offset
                    new = node * REPLAYED_CHANNELS + offset
                    advance(selection, block + offset, node, scratch, old, scratch, new, row)
