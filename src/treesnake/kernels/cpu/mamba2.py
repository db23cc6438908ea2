"""A whole Mamba-2 in one compiled call: every layer, every step, on every thread.

What the network is, `treesnake.models.mamba2` says; what a pass is, `state_space`; how threads work
together, `team`. It runs a text, moving the committed state along, or the newest nodes of trees, in
either way to branch.

All widths but those of heads are padded with zeros to whole vectors, and the names of axes mean
padded widths.
"""

import math
from typing import NamedTuple

import numpy as np

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.activations import skip_gate_range, soften_range
from treesnake.kernels.cpu.conv import copy_range
from treesnake.kernels.cpu.jit import inlined, kernel
from treesnake.kernels.cpu.norm import inverse_rms, scale_range
from treesnake.kernels.cpu.products import round_input
from treesnake.kernels.cpu.ssd import (
    SsdSelection,
    run_path,
    run_replayed,
    run_rows,
    run_sums,
    score_row,
)
from treesnake.kernels.cpu.state_space import (
    REPLAY,
    SUMS,
    TEXT,
    StackWeights,
    StackWorkspace,
    ancestor_mask_of,
    committed_of,
    convolve,
    embed_tokens,
    node_b_of,
    node_dt_of,
    node_states_of,
    node_x_of,
    parents_of,
    project_in,
    project_out,
    push_path,
    take_state,
    write_logits,
)
from treesnake.kernels.cpu.team import enter, finish_unit, next_unit, together, wait

STEPS_PER_LAYER = 8
OTHER_STEPS = 4


class Mamba2Weights(NamedTuple):
    """Weights as the kernels read them, those of all layers stacked.

    `in_proj` gives gate, x, B, C and step sizes, one after another; x, B and C are convolved. A has
    an entry a head, D one a channel. `dt_limits` are the bounds of dt over a text, `gated_epsilon`
    is that of the norms behind the gates.
    """

    stack: StackWeights
    gated_norm: np.ndarray
    gated_epsilon: np.float32
    dt_limits: np.ndarray


class Mamba2Workspace(NamedTuple):
    """Activations: C is (groups, rows, state_dim), `scores` (groups, rows, nodes).

    `scratch` (threads, nodes * head_dim, state_dim) is for states of one head.
    """

    stack: StackWorkspace
    C: np.ndarray
    scores: np.ndarray
    scratch: np.ndarray


def count_steps(num_layers: int) -> int:
    """Returns how many steps `run_mamba2` takes at most."""
    return num_layers * STEPS_PER_LAYER + OTHER_STEPS


@together
def run_mamba2(barrier, run):
    """Runs the rows: changes what is remembered, and writes the logits of the last ones."""
    thread = enter(barrier)
    step = embed_tokens(barrier, run)
    for layer in range(run.weights.stack.norm.shape[0]):
        step = run_mixer(barrier, step, run, layer, thread)
    write_logits(barrier, step, run)


@inlined
def run_mixer(barrier, step, run, layer, thread):
    """Runs the mixer of a layer and adds its outputs to the residual stream."""
    step = project_in(barrier, step, run, layer)
    step = convolve(barrier, step, run, layer, run.work.stack.y.shape[1])
    step = _select(barrier, step, run, layer)
    if run.rows.task == SUMS:
        step = _score(barrier, step, run, layer)
    step = _recur(barrier, step, run, layer, thread)
    step = _gate(barrier, step, run, layer)
    return project_out(barrier, step, run, layer)


@together
def commit_mamba2(barrier, A, conv, shape, parts, path):
    """Moves what a text remembers, the only part, to the end of a path of its tree."""
    num_layers, num_heads = A.shape
    part = parts[0]
    num_units = num_layers * (num_heads + 1)
    unit = next_unit(barrier, 0)
    while unit < num_units:
        layer, head = divmod(unit, num_heads + 1)
        if head == num_heads:
            push_path(part, conv, layer, path)
        elif part.node_states:
            head_dim = shape.num_cells // num_heads
            take_state(part, shape, layer, path[-1], head * head_dim, (head + 1) * head_dim)
        else:
            dt, x = node_dt_of(part, shape, layer), node_x_of(part, shape, layer)
            B, committed = node_b_of(part, shape, layer), committed_of(part, shape, layer)
            selection = SsdSelection(A[layer], dt, x, B, B, x, 0)
            run_path(selection, shape.num_groups, committed, path, head)
        unit = finish_unit(barrier, 0)
    wait(barrier, 0, num_units)


@kernel
def _part_of(parts, row):
    """Returns the number of the text that a row belongs to."""
    number = 0
    while row >= parts[number].first_row + parts[number].num_rows:
        number += 1
    return number


@inlined
def _select(barrier, step, run, layer):
    """Puts step sizes, x, B and C where the recurrence reads them, a row a unit."""
    rows, stack = run.rows, run.work.stack
    num_rows = rows.token_ids.shape[0]
    row = next_unit(barrier, step)
    while row < num_rows:
        part = rows.parts[_part_of(rows.parts, row)]
        if rows.task == SUMS or rows.task == REPLAY:
            node = part.num_nodes - part.num_rows + row - part.first_row
            x = node_x_of(part, run.shape, layer)
            copy_range(stack.convolved, row, 0, x.shape[1], x, node, 0)
            dt, B = node_dt_of(part, run.shape, layer), node_b_of(part, run.shape, layer)
            _select_row(run, layer, row, dt, B, node)
        else:
            _select_row(run, layer, row, stack.dt, stack.B, row)
            if rows.task == TEXT:
                _limit_row(stack.dt, row, run.weights.dt_limits)
        row = finish_unit(barrier, step)
    return wait(barrier, step, num_rows)


@inlined
def _select_row(run, layer, row, dt, B, node):
    stack, state_dim, num_groups = run.work.stack, run.shape.state_dim, run.shape.num_groups
    width, end = stack.y.shape[1], stack.projected.shape[1]
    copy_range(stack.projected, row, end - dt.shape[1], end, dt, node, 0)
    soften_range(dt, node, run.weights.stack.dt_bias[layer], 0, dt.shape[1])
    for group in range(num_groups):
        begin = width + group * state_dim
        cell = node * num_groups + group
        copy_range(stack.convolved, row, begin, begin + state_dim, B, cell, 0)
        begin += num_groups * state_dim
        copy_range(stack.convolved, row, begin, begin + state_dim, run.work.C[group], row, 0)


@kernel
def _limit_row(dt, row, limits):
    for column in range(dt.shape[1]):
        dt[row, column] = min(max(dt[row, column], limits[0]), limits[1])


@inlined
def _score(barrier, step, run, layer):
    """Multiplies C of the newest nodes with B of their ancestors, a node a unit."""
    rows, num_rows = run.rows, run.rows.token_ids.shape[0]
    row = next_unit(barrier, step)
    while row < num_rows:
        part = rows.parts[_part_of(rows.parts, row)]
        B, mask = node_b_of(part, run.shape, layer), ancestor_mask_of(part)
        score_row(B, run.work.C, mask, row - part.first_row, row, run.work.scores)
        row = finish_unit(barrier, step)
    return wait(barrier, step, num_rows)


@inlined
def _recur(barrier, step, run, layer, thread):
    """Runs the recurrence, a head a unit."""
    num_heads = run.weights.stack.A.shape[1]
    head = next_unit(barrier, step)
    while head < num_heads:
        for number in range(run.rows.parts.shape[0]):
            _recur_head(run, layer, run.rows.parts[number], head, thread)
        head = finish_unit(barrier, step)
    return wait(barrier, step, num_heads)


@inlined
def _recur_head(run, layer, part, head, thread):
    work, stack, shape = run.work, run.work.stack, run.shape
    num_rows, first_row, A = part.num_rows, part.first_row, run.weights.stack.A[layer]
    committed = committed_of(part, shape, layer)
    if run.rows.task == SUMS:
        dt, x = node_dt_of(part, shape, layer), node_x_of(part, shape, layer)
        B, mask = node_b_of(part, shape, layer), ancestor_mask_of(part)
        selection = SsdSelection(A, dt, x, B, work.C, stack.y, first_row)
        run_sums(selection, num_rows, committed, mask, work.scores, head)
    elif run.rows.task == REPLAY:
        dt, x = node_dt_of(part, shape, layer), node_x_of(part, shape, layer)
        B, parents = node_b_of(part, shape, layer), parents_of(part)
        selection = SsdSelection(A, dt, x, B, work.C, stack.y, first_row)
        run_replayed(selection, num_rows, committed, parents, work.scratch[thread], head)
    else:
        dt, x = stack.dt[first_row:], stack.convolved[first_row:]
        B = stack.B[first_row * shape.num_groups :]
        selection = SsdSelection(A, dt, x, B, work.C, stack.y, first_row)
        states, parents = node_states_of(part, shape, layer), parents_of(part)
        run_rows(selection, num_rows, committed, states, parents, head)


@inlined
def _gate(barrier, step, run, layer):
    """Adds the skip connection, gates, norms each group, and rounds: a row a unit."""
    stack = run.work.stack
    D, weight = run.weights.stack.D[layer], run.weights.gated_norm[layer]
    num_rows = run.rows.token_ids.shape[0]
    size = weight.shape[0] // run.shape.num_groups
    row = next_unit(barrier, step)
    while row < num_rows:
        x, gates, width = stack.convolved, stack.projected, stack.y.shape[1]
        skip_gate_range(stack.y, D, x, gates, 0, row, 0, width)
        for begin in range(0, weight.shape[0], size):
            end = begin + size
            factor = _inverse_rms(stack.y, row, begin, end, run.weights.gated_epsilon)
            scale_range(stack.y, row, begin, weight[begin:end], factor)
        round_input(stack.y, row, run.weights.stack.out_proj[layer], stack.rounded)
        row = finish_unit(barrier, step)
    return wait(barrier, step, num_rows)


@kernel
def _inverse_rms(x, row, begin, end, epsilon):
    """Returns 1 / sqrt(mean square + epsilon) of a range, which need not be whole vectors."""
    if (end - begin) % simd.PADDING == 0:
        return np.float32(inverse_rms(x, row, begin, end, end - begin, epsilon))
    total = np.float32(0)
    for column in range(begin, end):
        total += x[row, column] * x[row, column]
    return np.float32(1 / math.sqrt(total / np.float32(end - begin) + epsilon))
