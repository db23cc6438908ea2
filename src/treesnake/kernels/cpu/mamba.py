"""A whole Mamba in one compiled call: every layer, every step, on every thread.

What the network is, `treesnake.models.mamba` says; what a pass is, `state_space`; how threads work
together, `team`. It runs a text, moving the committed state along, or the newest nodes of trees, in
either way to branch. In all three a token's outputs are made by the same operations in the same
order, so that a node has the bits of its path.

All widths are padded with zeros to whole vectors, and the names of axes mean padded widths.
"""

from typing import NamedTuple

import numpy as np

from treesnake.kernels.cpu.activations import skip_gate_range, soften_range
from treesnake.kernels.cpu.conv import copy_range
from treesnake.kernels.cpu.jit import inlined
from treesnake.kernels.cpu.linear import REPLACE, linear_rows
from treesnake.kernels.cpu.ssm_rows import SsmSelection, run_path, run_rows, run_sums
from treesnake.kernels.cpu.state_space import (
    SUMS,
    StackWeights,
    StackWorkspace,
    committed_of,
    convolve,
    embed_tokens,
    needed_of,
    node_b_of,
    node_dt_of,
    node_states_of,
    node_x_of,
    parents_of,
    project_in,
    project_out,
    push_path,
    round_outputs,
    take_state,
    write_logits,
)
from treesnake.kernels.cpu.steps import block_size
from treesnake.kernels.cpu.team import enter, finish_unit, next_unit, together, wait

STEPS_PER_LAYER = 8
OTHER_STEPS = 4


class MambaWeights(NamedTuple):
    """Weights as the kernels read them, those of all layers stacked.

    `x_proj` gives the low-rank step sizes, B and C, one after another; `dt_proj` reads all of its
    outputs, with zeros for B and C. A is (layers, channels, state_dim).
    """

    stack: StackWeights
    x_proj: np.ndarray
    dt_proj: np.ndarray


class MambaWorkspace(NamedTuple):
    """Activations (rows, width), and scratch per thread; `selected` is what `x_proj` gives."""

    stack: StackWorkspace
    selected: np.ndarray
    scratch: np.ndarray


def count_steps(num_layers: int) -> int:
    """Returns how many steps `run_mamba` takes at most."""
    return num_layers * STEPS_PER_LAYER + OTHER_STEPS


@together
def run_mamba(barrier, run):
    """Runs the rows: changes what is remembered, and writes the logits of the last ones."""
    thread = enter(barrier)
    step = embed_tokens(barrier, run)
    for layer in range(run.weights.stack.norm.shape[0]):
        step = project_in(barrier, step, run, layer)
        step = convolve(barrier, step, run, layer, 0)
        step = _select(barrier, step, run, layer)
        step = _recur(barrier, step, run, layer, thread)
        step = round_outputs(barrier, step, run, layer)
        step = project_out(barrier, step, run, layer)
    write_logits(barrier, step, run)


@together
def commit_mamba(barrier, A, conv, shape, parts, path):
    """Moves what a text remembers, the only part, to the end of a path of its tree."""
    num_layers, num_channels, _ = A.shape
    part, block = parts[0], block_size(num_channels, barrier)
    num_blocks = (num_channels + block - 1) // block
    num_units = num_layers * (num_blocks + 1)
    unit = next_unit(barrier, 0)
    while unit < num_units:
        layer, number = divmod(unit, num_blocks + 1)
        begin, end = number * block, min((number + 1) * block, num_channels)
        if number == num_blocks:
            push_path(part, conv, layer, path)
        elif part.node_states:
            take_state(part, shape, layer, path[-1], begin, end)
        else:
            dt, x = node_dt_of(part, shape, layer), node_x_of(part, shape, layer)
            B, committed = node_b_of(part, shape, layer), committed_of(part, shape, layer)
            selection = SsmSelection(A[layer], dt, x, B, B, 0, B, 0)
            run_path(selection, committed, path, begin, end)
        unit = finish_unit(barrier, 0)
    wait(barrier, 0, num_units)


@inlined
def _select(barrier, step, run, layer):
    """Makes low-rank step sizes, B and C; keeps B where the recurrence reads it."""
    work = run.work
    weight, x = run.weights.x_proj[layer], work.stack.convolved
    num_rows, num_outputs = run.rows.token_ids.shape[0], weight.shape[0]
    block = block_size(num_outputs, barrier)
    num_units = (num_outputs + block - 1) // block
    unit = next_unit(barrier, step)
    while unit < num_units:
        begin = unit * block
        end = min(begin + block, num_outputs)
        linear_rows(x, num_rows, weight, begin, end, work.selected, REPLACE)
        for number in range(run.rows.parts.shape[0]):
            _keep_directions(run, layer, run.rows.parts[number], begin, end)
        unit = finish_unit(barrier, step)
    return wait(barrier, step, num_units)


@inlined
def _keep_directions(run, layer, part, begin, end):
    """Copies what lies of B in columns begin..end of `selected`."""
    selected, state_dim = run.work.selected, run.shape.state_dim
    column = selected.shape[1] - 2 * state_dim
    B, first = run.work.stack.B, part.first_row
    if run.rows.task == SUMS:
        B, first = node_b_of(part, run.shape, layer), part.num_nodes - part.num_rows
    for row in range(part.num_rows):
        for output in range(max(begin, column), min(end, column + state_dim)):
            B[first + row, output - column] = selected[part.first_row + row, output]


@inlined
def _recur(barrier, step, run, layer, thread):
    """Makes step sizes, runs the recurrence and gates its outputs, some channels a unit."""
    work, stack = run.work, run.work.stack
    weight, bias = run.weights.dt_proj[layer], run.weights.stack.dt_bias[layer]
    D = run.weights.stack.D[layer]
    num_rows, num_channels = run.rows.token_ids.shape[0], weight.shape[0]
    block = block_size(num_channels, barrier)
    num_units = (num_channels + block - 1) // block
    unit = next_unit(barrier, step)
    while unit < num_units:
        begin = unit * block
        end = min(begin + block, num_channels)
        linear_rows(work.selected, num_rows, weight, begin, end, stack.dt, REPLACE)
        for row in range(num_rows):
            soften_range(stack.dt, row, bias, begin, end)
        for number in range(run.rows.parts.shape[0]):
            _recur_part(run, layer, run.rows.parts[number], thread, begin, end)
        for row in range(num_rows):
            x, gates = stack.convolved, stack.projected
            skip_gate_range(stack.y, D, x, gates, num_channels, row, begin, end)
        unit = finish_unit(barrier, step)
    return wait(barrier, step, num_units)


@inlined
def _recur_part(run, layer, part, thread, begin, end):
    work, stack, shape = run.work, run.work.stack, run.shape
    num_rows, first_row, A = part.num_rows, part.first_row, run.weights.stack.A[layer]
    C, c_column, y = work.selected, work.selected.shape[1] - shape.state_dim, stack.y
    committed, parents = committed_of(part, shape, layer), parents_of(part)
    if run.rows.task == SUMS:
        first = part.num_nodes - num_rows
        dt, x = node_dt_of(part, shape, layer), node_x_of(part, shape, layer)
        for row in range(num_rows):
            copy_range(stack.dt, first_row + row, begin, end, dt, first + row, begin)
            copy_range(stack.convolved, first_row + row, begin, end, x, first + row, begin)
        B = node_b_of(part, shape, layer)
        selection = SsmSelection(A, dt, x, B, C, c_column, y, first_row)
        needed, scratch = needed_of(part), work.scratch[thread]
        run_sums(selection, num_rows, committed, parents, needed, scratch, begin, end)
    else:
        dt, x, B = stack.dt[first_row:], stack.convolved[first_row:], stack.B[first_row:]
        selection = SsmSelection(A, dt, x, B, C, c_column, y, first_row)
        states = node_states_of(part, shape, layer)
        run_rows(selection, num_rows, committed, states, parents, begin, end)
