"""The state space dual of Mamba-2, compiled: a head at a time.

Names are those of `treesnake.kernels.reference.ssd`. Here `state_dim` is padded with zeros to whole
vectors, and x and outputs are rows of all heads' channels. A tree over one committed state reads
that state once for all new nodes, as a matrix product; everything else is small.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.conv import padded_array, unpadded, write_back
from treesnake.kernels.cpu.jit import entry_point, kernel
from treesnake.kernels.cpu.linear import linear_rows, padded_rows
from treesnake.kernels.cpu.ssm_rows import cell_pointers
from treesnake.kernels.cpu.team import TEAM, finish_unit, next_unit, wait
from treesnake.kernels.reference.ssd import scan

__all__ = ["commit_sums", "extend_copies", "extend_sums", "scan"]

ROWS_AT_ONCE = 4
"""Rows of a head's state that share the loads of B and C, where so many are left."""


def _advance_tile(num_rows: int, *, has_output: bool) -> Any:
    """Builds the intrinsic that steps some rows of a head's state.

    A *cell* is `state_dim` numbers, counted through all axes of an array but the last: a row of a
    state, one group's B of a node. The new state is decay * old + amounts times B, where amounts
    are `step * x[row, channel:]`; its products with C go to `y[read_row, channel:]`.
    """

    @intrinsic
    def advance(
        typing_context,
        decay,
        step,
        x,
        row,
        channel,
        B,
        b_cell,
        source,
        source_cell,
        target,
        target_cell,
        C,
        c_cell,
        y,
        read_row,
    ):
        def generate(context, builder, signature, arguments):
            decay, step = (simd.splat(builder, value) for value in arguments[:2])
            x, B, source, target, C, y = (
                context.make_array(signature.args[place])(context, builder, arguments[place])
                for place in (2, 5, 7, 9, 11, 13)
            )
            row, channel, b_cell, source_cell, target_cell, c_cell, read_row = (
                arguments[place] for place in (3, 4, 6, 8, 10, 12, 14)
            )
            width = cgutils.unpack_tuple(builder, B.shape)[-1]

            inputs = builder.gep(simd.row_pointer(builder, x, row), [channel])
            amounts = []
            for n in range(num_rows):
                value = builder.load(builder.gep(inputs, [simd.index(n)]))
                amounts.append(builder.fmul(step, simd.splat(builder, value)))
            sources = cell_pointers(builder, source, source_cell, width, num_rows)
            targets = cell_pointers(builder, target, target_cell, width, num_rows)
            (directions,) = cell_pointers(builder, B, b_cell, width, 1)
            (readers,) = cell_pointers(builder, C, c_cell, width, 1)

            def advance_vector(place: Any, sums: Sequence[Any]) -> list[Any]:
                def load(pointer: Any) -> Any:
                    return simd.load(builder, builder.gep(pointer, [place]), types.float32)

                direction, reader = load(directions), load(readers) if has_output else None
                results = []
                for n in range(num_rows):
                    written = builder.fmul(amounts[n], direction)
                    state = simd.fused_multiply_add(builder, decay, load(sources[n]), written)
                    pointer = builder.gep(targets[n], [place])
                    simd.store(builder, state, pointer, types.float32)
                    if has_output:
                        results.append(simd.fused_multiply_add(builder, state, reader, sums[n]))
                return results

            carried = [simd.ZERO] * num_rows if has_output else []
            sums = simd.loop(builder, simd.index(0), width, simd.LANES, carried, advance_vector)
            if has_output:
                outputs = builder.gep(simd.row_pointer(builder, y, read_row), [channel])
                for n, total in enumerate(simd.add_lanes(builder, sums)):
                    builder.store(total, builder.gep(outputs, [simd.index(n)]))
            return context.get_dummy_value()

        at, number = types.intp, types.float32
        signature = types.void(
            number, number, x, at, at, B, at, source, at, target, at, C, at, y, at
        )
        return signature, generate

    return advance


_advance = _advance_tile(ROWS_AT_ONCE, has_output=True)
_advance_one = _advance_tile(1, has_output=True)
_advance_silently = _advance_tile(ROWS_AT_ONCE, has_output=False)
_advance_one_silently = _advance_tile(1, has_output=False)


@intrinsic
def _dot_cells(typing_context, B, b_cell, C, c_cell):
    """Returns the product of two cells."""

    def generate(context, builder, signature, arguments):
        B, C = (
            context.make_array(signature.args[place])(context, builder, arguments[place])
            for place in (0, 2)
        )
        width = cgutils.unpack_tuple(builder, B.shape)[-1]
        pointers = [
            *cell_pointers(builder, B, arguments[1], width, 1),
            *cell_pointers(builder, C, arguments[3], width, 1),
        ]

        def add_product(place: Any, sums: Sequence[Any]) -> list[Any]:
            first, second = (
                simd.load(builder, builder.gep(pointer, [place]), types.float32)
                for pointer in pointers
            )
            return [simd.fused_multiply_add(builder, first, second, sums[0])]

        sums = simd.loop(builder, simd.index(0), width, simd.LANES, [simd.ZERO], add_product)
        return simd.add_lanes(builder, sums)[0]

    return types.float32(B, types.intp, C, types.intp), generate


class Selection(NamedTuple):
    """What the recurrence of a layer reads, a row for each token or node, and writes.

    `rates` is A; `x` and `y` are (rows, heads * head_dim), `B` (rows, groups, state_dim), `C`
    (groups, rows, state_dim). `C` and `y` have rows for those nodes only whose outputs are wanted,
    the last ones, and rows to spare for whole tiles.
    """

    rates: np.ndarray
    dt: np.ndarray
    x: np.ndarray
    B: np.ndarray
    C: np.ndarray
    y: np.ndarray


@kernel
def run_rows(selection, num_rows, committed, states, parents, head):
    """Runs a head of the newest nodes, each from its parent's state, and writes their states.

    `selection` has rows for the newest nodes only; states are (nodes, heads, head_dim, state_dim)
    and `committed` is one. With no parents at all the rows are a text, and move the committed state
    along.
    """
    rates, dt, x, B, C, y = selection
    num_heads, head_dim, num_nodes = rates.shape[0], committed.shape[2], parents.shape[0]
    num_groups = B.shape[1]
    group, channel = head * num_groups // num_heads, head * head_dim
    for row in range(num_rows):
        source, target, old, new = committed, committed, channel, channel
        if num_nodes > 0:
            target = states
            new += (num_nodes - num_rows + row) * num_heads * head_dim
            parent = parents[num_nodes - num_rows + row]
            if parent >= 0:
                source = states
                old += parent * num_heads * head_dim
        step = dt[row, head]
        decay = np.float32(math.exp(step * rates[head]))
        b, c = row * num_groups + group, group * C.shape[1] + row
        for at in range(0, head_dim - head_dim % ROWS_AT_ONCE, ROWS_AT_ONCE):
            _advance(
                decay,
                step,
                x,
                row,
                channel + at,
                B,
                b,
                source,
                old + at,
                target,
                new + at,
                C,
                c,
                y,
                row,
            )
        for at in range(head_dim - head_dim % ROWS_AT_ONCE, head_dim):
            _advance_one(
                decay,
                step,
                x,
                row,
                channel + at,
                B,
                b,
                source,
                old + at,
                target,
                new + at,
                C,
                c,
                y,
                row,
            )


@kernel
def run_path(rates, dt, x, B, state, head):
    """Moves a head's state along a path, without outputs."""
    groups, head_dim = B.shape[1], state.shape[1]
    group, cell = head * groups // rates.shape[0], head * head_dim
    for row in range(dt.shape[0]):
        step = dt[row, head]
        decay = np.float32(math.exp(step * rates[head]))
        b = row * groups + group
        for own in range(cell, cell + head_dim - head_dim % ROWS_AT_ONCE, ROWS_AT_ONCE):
            _advance_silently(decay, step, x, row, own, B, b, state, own, state, own, B, 0, x, 0)
        for own in range(cell + head_dim - head_dim % ROWS_AT_ONCE, cell + head_dim):
            _advance_one_silently(
                decay, step, x, row, own, B, b, state, own, state, own, B, 0, x, 0
            )


@kernel
def score_row(B, C, ancestor_mask, row, scores):
    """Writes C . B of each group, between one of the newest nodes and its ancestors.

    `ancestor_mask` is (new, nodes) and `scores` (groups, new, nodes).
    """
    groups = B.shape[1]
    for node in range(ancestor_mask.shape[1]):
        if ancestor_mask[row, node]:
            for group in range(groups):
                b_cell, c_cell = node * groups + group, group * C.shape[1] + row
                scores[group, row, node] = _dot_cells(B, b_cell, C, c_cell)


@kernel
def run_sums(selection, num_new, committed, ancestor_mask, scores, head):
    """Runs a head of the newest nodes from the committed state and their ancestors' inputs.

    `selection` has inputs of all nodes; `committed` is (heads * head_dim, state_dim).
    """
    rates, dt, x, _, C, y = selection
    num_heads, num_nodes = rates.shape[0], ancestor_mask.shape[1]
    head_dim = committed.shape[0] // num_heads
    group = head * C.shape[0] // num_heads
    begin, end = head * head_dim, (head + 1) * head_dim
    linear_rows(C[group], num_new, committed, begin, end, y, None)
    for row in range(num_new):
        kept = np.float32(math.exp(rates[head] * _elapsed(dt, ancestor_mask, row, head)))
        for channel in range(begin, end):
            y[row, channel] *= kept
        elapsed = np.float32(0)
        for node in range(num_nodes - 1, -1, -1):
            if ancestor_mask[row, node]:
                decay = np.float32(math.exp(rates[head] * elapsed))
                weight = decay * scores[group, row, node] * dt[node, head]
                for channel in range(begin, end):
                    y[row, channel] += weight * x[node, channel]
                elapsed += dt[node, head]


@kernel
def _elapsed(dt, ancestor_mask, row, head):
    total = np.float32(0)
    for node in range(ancestor_mask.shape[1] - 1, -1, -1):
        if ancestor_mask[row, node]:
            total += dt[node, head]
    return total


@entry_point
def _extend_copies(barrier, selection, committed, states, parents):
    num_heads = committed.shape[1]
    head = next_unit(barrier, 0)
    while head < num_heads:
        run_rows(selection, selection.C.shape[1], committed, states, parents, head)
        head = finish_unit(barrier, 0)
    wait(barrier, 0, num_heads)


@entry_point
def _extend_sums(barrier, selection, num_new, committed, ancestor_mask, scores):
    num_heads = selection.rates.shape[0]
    row = next_unit(barrier, 0)
    while row < num_new:
        score_row(selection.B, selection.C, ancestor_mask, row, scores)
        row = finish_unit(barrier, 0)
    step = wait(barrier, 0, num_new)
    head = next_unit(barrier, step)
    while head < num_heads:
        run_sums(selection, num_new, committed, ancestor_mask, scores, head)
        head = finish_unit(barrier, step)
    wait(barrier, step, num_heads)


@entry_point
def _commit_sums(barrier, rates, dt, x, B, states):
    num_layers, num_heads = rates.shape
    unit = next_unit(barrier, 0)
    while unit < num_layers * num_heads:
        layer, head = divmod(unit, num_heads)
        run_path(rates[layer], dt[layer], x[layer], B[layer], states[layer], head)
        unit = finish_unit(barrier, 0)
    wait(barrier, 0, num_layers * num_heads)


def extend_copies(
    x: Float[Tensor, "new heads head_dim"],
    dt: Float[Tensor, "new heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "new groups state_dim"],
    C: Float[Tensor, "new groups state_dim"],
    D: Float[Tensor, " heads"],
    committed: Float[Tensor, "heads head_dim state_dim"],
    node_states: Float[Tensor, "nodes heads head_dim state_dim"],
    parents: Int[Tensor, " nodes"],
) -> Float[Tensor, "new heads head_dim"]:
    """Runs the newest nodes of a tree, each from its parent's state, which it writes."""
    selection = _selection(x, dt, A, B, C, num_rows=C.shape[0])
    states = padded_array(node_states)
    inputs = (selection, padded_array(committed[None]), states, parents.numpy())
    TEAM.run(_extend_copies, 1, *inputs)
    write_back(states, node_states)
    y = torch.from_numpy(selection.y).unflatten(1, x.shape[1:])
    return (y + D[:, None] * x).to(x.dtype)


def extend_sums(
    x: Float[Tensor, "nodes heads head_dim"],
    dt: Float[Tensor, "nodes heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "nodes groups state_dim"],
    C: Float[Tensor, "new groups state_dim"],
    D: Float[Tensor, " heads"],
    committed: Float[Tensor, "heads head_dim state_dim"],
    ancestor_mask: Bool[Tensor, " nodes nodes"],
) -> Float[Tensor, "new heads head_dim"]:
    """Runs the newest nodes of a tree from the inputs of their ancestors; no state is made."""
    num_new, newest = C.shape[0], x[-C.shape[0] :]
    selection = _selection(x, dt, A, B, C, num_rows=padded_rows(num_new))
    scores = np.empty((B.shape[1], num_new, len(x)), np.float32)
    mask = ancestor_mask[-num_new:].numpy()
    TEAM.run(
        _extend_sums, 2, selection, num_new, padded_array(committed.flatten(0, 1)), mask, scores
    )
    y = unpadded(selection.y, (num_new,)).unflatten(1, x.shape[1:])
    return (y + D[:, None] * newest).to(x.dtype)


def commit_sums(
    x: Float[Tensor, "layers path heads head_dim"],
    dt: Float[Tensor, "layers path heads"],
    A: Float[Tensor, "layers heads"],
    B: Float[Tensor, "layers path groups state_dim"],
    committed: Float[Tensor, "layers heads head_dim state_dim"],
) -> None:
    """Moves the committed states of all layers along a path, step by step, in place."""
    states = padded_array(committed)
    inputs = (_array(A), _array(dt), _array(x.flatten(2)), padded_array(B))
    TEAM.run(_commit_sums, 1, *inputs, states)
    write_back(states, committed)


def _selection(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, num_rows: int) -> Selection:
    readers = padded_array(F.pad(C.transpose(0, 1), (0, 0, 0, num_rows - C.shape[0])))
    y = np.empty((num_rows, x.shape[1] * x.shape[2]), np.float32)
    return Selection(_array(A), _array(dt), _array(x.flatten(1)), padded_array(B), readers, y)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().contiguous().numpy()
