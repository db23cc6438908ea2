"""The state space dual of Mamba-2, compiled: a head at a time.

Names are those of `treesnake.kernels.reference.ssd`. Here `state_dim` is padded with zeros to whole
vectors, and x and outputs are rows of all heads' channels. A *cell* is `state_dim` numbers: a
channel's row of a state, or one group's B or C of a node; states and B are rows of cells. A tree
over one committed state reads that state once for all new nodes, as a matrix product; everything
else is small.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.jit import kernel
from treesnake.kernels.cpu.linear import REPLACE, linear_rows
from treesnake.kernels.cpu.ssm_rows import cell_pointers, members

CELLS_AT_ONCE = 4
"""Cells of a head's state that share the loads of B and C, where so many are left."""


class SsdSelection(NamedTuple):
    """What the recurrence of a layer reads for one text, and writes.

    `dt` (rows, heads), `x` (rows, heads * head_dim) and `B` (rows * groups, state_dim) have rows
    for each token or node of the text. `C` (groups, rows, state_dim) and `y` have a row for each
    row of the pass, of which those of the text's tokens or newest nodes begin at `first_row`, and
    rows to spare for whole tiles.
    """

    A: np.ndarray
    dt: np.ndarray
    x: np.ndarray
    B: np.ndarray
    C: np.ndarray
    y: np.ndarray
    first_row: int


class HeadStep(NamedTuple):
    """What one token or node does to the state of one head.

    `row` is its row of x, `read_row` that of the outputs; `b_cell` and `c_cell` are its B and C.
    """

    decay: np.float32
    dt: np.float32
    row: int
    read_row: int
    b_cell: int
    c_cell: int


def _advance_tile(num_cells: int, *, has_output: bool) -> Any:
    """Builds the intrinsic that moves some cells of a head's state by one step.

    The cells are those of the channels from `channel` on. The new state, from cell `new` of
    `target` on, is decay * old + dt * x times B. If there is an output, the products of the state
    with C go to `y`.
    """

    @intrinsic
    def advance(typing_context, selection, step, channel, source, old, target, new):
        def generate(context, builder, signature, arguments):
            given = members(context, builder, signature.args[0], arguments[0])
            step = members(context, builder, signature.args[1], arguments[1])
            source, target = (
                context.make_array(signature.args[argument])(context, builder, arguments[argument])
                for argument in (3, 5)
            )
            channel, old, new = (arguments[argument] for argument in (2, 4, 6))
            decay, dt = (simd.splat(builder, step[name]) for name in ("decay", "dt"))
            width = cgutils.unpack_tuple(builder, given["B"].shape)[-1]

            inputs = builder.gep(simd.row_pointer(builder, given["x"], step["row"]), [channel])
            amounts = []
            for n in range(num_cells):
                value = builder.load(builder.gep(inputs, [simd.index(n)]))
                amounts.append(builder.fmul(dt, simd.splat(builder, value)))
            sources = cell_pointers(builder, source, old, width, num_cells)
            targets = cell_pointers(builder, target, new, width, num_cells)
            (directions,) = cell_pointers(builder, given["B"], step["b_cell"], width, 1)
            (readers,) = cell_pointers(builder, given["C"], step["c_cell"], width, 1)

            def advance_vector(offset: Any, sums: Sequence[Any]) -> list[Any]:
                def load(pointer: Any) -> Any:
                    return simd.load(builder, builder.gep(pointer, [offset]), types.float32)

                direction, reader = load(directions), load(readers) if has_output else None
                results = []
                for n in range(num_cells):
                    written = builder.fmul(amounts[n], direction)
                    state = simd.fused_multiply_add(builder, decay, load(sources[n]), written)
                    pointer = builder.gep(targets[n], [offset])
                    simd.store(builder, state, pointer, types.float32)
                    if has_output:
                        results.append(simd.fused_multiply_add(builder, state, reader, sums[n]))
                return results

            carried = [simd.ZERO] * num_cells if has_output else []
            sums = simd.loop(builder, simd.index(0), width, simd.LANES, carried, advance_vector)
            if has_output:
                row = simd.row_pointer(builder, given["y"], step["read_row"])
                outputs = builder.gep(row, [channel])
                for n, total in enumerate(simd.add_lanes(builder, sums)):
                    builder.store(total, builder.gep(outputs, [simd.index(n)]))
            return context.get_dummy_value()

        at = types.intp
        return types.void(selection, step, at, source, at, target, at), generate

    return advance


_advance = _advance_tile(CELLS_AT_ONCE, has_output=True)
_advance_one = _advance_tile(1, has_output=True)
_advance_silently = _advance_tile(CELLS_AT_ONCE, has_output=False)
_advance_one_silently = _advance_tile(1, has_output=False)


@intrinsic
def _dot_cells(typing_context, B, b_cell, C, c_cell):
    """Returns the product of two cells."""

    def generate(context, builder, signature, arguments):
        B, C = (
            context.make_array(signature.args[argument])(context, builder, arguments[argument])
            for argument in (0, 2)
        )
        width = cgutils.unpack_tuple(builder, B.shape)[-1]
        pointers = [
            *cell_pointers(builder, B, arguments[1], width, 1),
            *cell_pointers(builder, C, arguments[3], width, 1),
        ]

        def add_product(offset: Any, sums: Sequence[Any]) -> list[Any]:
            first, second = (
                simd.load(builder, builder.gep(pointer, [offset]), types.float32)
                for pointer in pointers
            )
            return [simd.fused_multiply_add(builder, first, second, sums[0])]

        sums = simd.loop(builder, simd.index(0), width, simd.LANES, [simd.ZERO], add_product)
        return simd.add_lanes(builder, sums)[0]

    return types.float32(B, types.intp, C, types.intp), generate


@kernel
def _head_step(selection, num_groups, row, read_row, head):
    num_heads = selection.A.shape[0]
    group = head * num_groups // num_heads
    dt = selection.dt[row, head]
    decay = np.float32(math.exp(dt * selection.A[head]))
    c_cell = group * selection.C.shape[1] + read_row
    return HeadStep(decay, dt, row, read_row, row * num_groups + group, c_cell)


@kernel
def run_rows(selection, num_rows, committed, states, parents, head):
    """Runs a head of the newest nodes, each from its parent's state, and writes their states.

    `selection` has rows for the newest nodes only; `committed` is one state. With no parents at all
    the rows are a text, and move the committed state along.
    """
    num_cells, num_nodes = committed.shape[0], parents.shape[0]
    head_dim = num_cells // selection.A.shape[0]
    channel, num_groups = head * head_dim, selection.C.shape[0]
    whole = channel + head_dim - head_dim % CELLS_AT_ONCE
    for row in range(num_rows):
        source, target, old, new = committed, committed, 0, 0
        if num_nodes > 0:
            target, new = states, (num_nodes - num_rows + row) * num_cells
            parent = parents[num_nodes - num_rows + row]
            if parent >= 0:
                source, old = states, parent * num_cells
        step = _head_step(selection, num_groups, row, selection.first_row + row, head)
        for at in range(channel, whole, CELLS_AT_ONCE):
            _advance(selection, step, at, source, old + at, target, new + at)
        for at in range(whole, channel + head_dim):
            _advance_one(selection, step, at, source, old + at, target, new + at)


@kernel
def run_replayed(selection, num_new, committed, parents, scratch, head):
    """Runs a head of the newest nodes, each from its parent's state, as a text would run it.

    `selection` has inputs of all nodes. States are made in `scratch` (nodes * head_dim, state_dim),
    those of earlier nodes again, and are needed no longer afterwards.
    """
    num_nodes, num_groups = parents.shape[0], selection.C.shape[0]
    head_dim = committed.shape[0] // selection.A.shape[0]
    channel = head * head_dim
    whole = channel + head_dim - head_dim % CELLS_AT_ONCE
    for node in range(num_nodes):
        source, old, new = committed, 0, node * head_dim - channel
        if parents[node] >= 0:
            source, old = scratch, parents[node] * head_dim - channel
        number = node - (num_nodes - num_new)
        read_row = selection.first_row + max(number, 0)
        step = _head_step(selection, num_groups, node, read_row, head)
        if number < 0:
            for at in range(channel, whole, CELLS_AT_ONCE):
                _advance_silently(selection, step, at, source, old + at, scratch, new + at)
            for at in range(whole, channel + head_dim):
                _advance_one_silently(selection, step, at, source, old + at, scratch, new + at)
        else:
            for at in range(channel, whole, CELLS_AT_ONCE):
                _advance(selection, step, at, source, old + at, scratch, new + at)
            for at in range(whole, channel + head_dim):
                _advance_one(selection, step, at, source, old + at, scratch, new + at)


@kernel
def run_path(selection, num_groups, state, path, head):
    """Moves a head's state along a path of nodes, without outputs."""
    head_dim = state.shape[0] // selection.A.shape[0]
    channel = head * head_dim
    whole = channel + head_dim - head_dim % CELLS_AT_ONCE
    for node in path:
        step = _head_step(selection, num_groups, node, 0, head)
        for at in range(channel, whole, CELLS_AT_ONCE):
            _advance_silently(selection, step, at, state, at, state, at)
        for at in range(whole, channel + head_dim):
            _advance_one_silently(selection, step, at, state, at, state, at)


@kernel
def score_row(B, C, ancestor_mask, new, row, scores):
    """Writes C . B of each group, between one of the newest nodes and its ancestors.

    `ancestor_mask` is (new, nodes) and `scores` (groups, rows, nodes). The node is the one of
    number `new` among the text's newest, and has row `row` in the pass.
    """
    num_groups = C.shape[0]
    for node in range(ancestor_mask.shape[1]):
        if ancestor_mask[new, node]:
            for group in range(num_groups):
                b_cell, c_cell = node * num_groups + group, group * C.shape[1] + row
                scores[group, row, node] = _dot_cells(B, b_cell, C, c_cell)


@kernel
def run_sums(selection, num_new, committed, ancestor_mask, scores, head):
    """Runs a head of the newest nodes from the committed state and their ancestors' inputs.

    `selection` has inputs of all nodes. The matrix product may write to rows after those of the
    newest nodes, which are to spare or belong to texts that are run afterwards.
    """
    A, dt, x, _, C, y, first_row = selection
    num_heads, num_nodes = A.shape[0], ancestor_mask.shape[1]
    head_dim = committed.shape[0] // num_heads
    group = head * C.shape[0] // num_heads
    begin, end = head * head_dim, (head + 1) * head_dim
    linear_rows(C[group][first_row:], num_new, committed, begin, end, y[first_row:], REPLACE)
    for new in range(num_new):
        row = first_row + new
        kept = np.float32(math.exp(A[head] * _elapsed(dt, ancestor_mask, new, head)))
        for channel in range(begin, end):
            y[row, channel] *= kept
        elapsed = np.float32(0)
        for node in range(num_nodes - 1, -1, -1):
            if ancestor_mask[new, node]:
                decay = np.float32(math.exp(A[head] * elapsed))
                weight = decay * scores[group, row, node] * dt[node, head]
                for channel in range(begin, end):
                    y[row, channel] += weight * x[node, channel]
                elapsed += dt[node, head]


@kernel
def _elapsed(dt, ancestor_mask, new, head):
    total = np.float32(0)
    for node in range(ancestor_mask.shape[1] - 1, -1, -1):
        if ancestor_mask[new, node]:
            total += dt[node, head]
    return total
