"""A whole Mamba in one compiled call: every layer, every step, on every thread.

What the network is, `treesnake.models.mamba` says; how threads work together, `team`. It runs a
text, moving the committed state along, or the newest nodes of a tree, in either way to branch. In
all three a token's outputs are made by the same operations in the same order, so that a node has
the bits of its path.

All widths are padded with zeros to whole vectors, and the names of axes mean padded widths.
"""

from typing import NamedTuple

import numpy as np

from treesnake.kernels.cpu.activations import skip_gate_range, soften_range
from treesnake.kernels.cpu.conv import copy_range
from treesnake.kernels.cpu.jit import entry_point, inlined
from treesnake.kernels.cpu.linear import linear_rows
from treesnake.kernels.cpu.ssm_rows import Selection, run_rows, run_sums
from treesnake.kernels.cpu.state_space import (
    SUMS,
    Memory,
    Tokens,
    convolve,
    embed_tokens,
    enter_layer,
    leave_layer,
    write_logits,
)
from treesnake.kernels.cpu.steps import block_size
from treesnake.kernels.cpu.team import enter, finish_unit, next_unit, wait

STEPS_PER_LAYER = 6
OTHER_STEPS = 3


class Weights(NamedTuple):
    """Weights as the kernels read them, those of all layers stacked.

    Matrices are (layers, outputs, inputs), each with a scale (layers, outputs). `select` gives the
    low-rank step sizes, B and C, one after another; `steps` reads all of its outputs, with zeros
    for B and C. Convolutions are (layers, conv_width, channels). Biases may be of width 0.
    """

    embedding: np.ndarray
    embedding_scale: np.ndarray
    norm: np.ndarray
    enter: np.ndarray
    enter_scale: np.ndarray
    enter_bias: np.ndarray
    conv: np.ndarray
    conv_bias: np.ndarray
    select: np.ndarray
    select_scale: np.ndarray
    steps: np.ndarray
    steps_scale: np.ndarray
    steps_bias: np.ndarray
    rates: np.ndarray
    skip: np.ndarray
    leave: np.ndarray
    leave_scale: np.ndarray
    leave_bias: np.ndarray
    final_norm: np.ndarray
    head: np.ndarray
    head_scale: np.ndarray


class Workspace(NamedTuple):
    """Activations (rows, width), with rows to spare for whole tiles, and scratch per thread."""

    residual: np.ndarray
    normed: np.ndarray
    entered: np.ndarray
    conv_inputs: np.ndarray
    x: np.ndarray
    selected: np.ndarray
    B: np.ndarray
    dt: np.ndarray
    y: np.ndarray
    scratch: np.ndarray


class Run(NamedTuple):
    """All that one call reads and writes; `logits` has rows for the last `num_logits` tokens.

    B starts at column `b_column` of what `Weights.select` gives.
    """

    weights: Weights
    memory: Memory
    tokens: Tokens
    work: Workspace
    epsilon: np.float32
    b_column: int
    num_logits: int
    logits: np.ndarray


def count_steps(num_layers: int) -> int:
    """Returns how many steps `run_mamba` takes."""
    return num_layers * STEPS_PER_LAYER + OTHER_STEPS


@entry_point
def run_mamba(barrier, run):
    """Runs the tokens: changes what is remembered, and writes the logits of the last ones."""
    thread = enter(barrier)
    step = embed_tokens(barrier, run)
    for layer in range(run.weights.norm.shape[0]):
        step = enter_layer(barrier, step, run, layer)
        step = convolve(barrier, step, run, layer, 0, run.work.x)
        step = _select(barrier, step, run, layer)
        step = _recur(barrier, step, run, layer, thread)
        step = leave_layer(barrier, step, run, layer)
    write_logits(barrier, step, run)


@inlined
def _select(barrier, step, run, layer):
    """Makes low-rank step sizes, B and C; keeps B where the recurrence reads it."""
    tokens, work = run.tokens, run.work
    weight, scale = run.weights.select[layer], run.weights.select_scale[layer]
    num_rows, num_outputs = tokens.token_ids.shape[0], weight.shape[0]
    is_sums = tokens.task == SUMS
    B = run.memory.node_directions[layer] if is_sums else work.B
    first = tokens.parents.shape[0] - num_rows if is_sums else 0
    block = block_size(num_outputs, barrier)
    num_units = (num_outputs + block - 1) // block
    unit = next_unit(barrier, step)
    while unit < num_units:
        begin = unit * block
        end = min(begin + block, num_outputs)
        linear_rows(work.x, num_rows, weight, begin, end, work.selected, scale)
        for row in range(num_rows):
            for column in range(max(begin, run.b_column), min(end, run.b_column + B.shape[1])):
                B[first + row, column - run.b_column] = work.selected[row, column]
        unit = finish_unit(barrier, step)
    return wait(barrier, step, num_units)


@inlined
def _recur(barrier, step, run, layer, thread):
    """Makes step sizes, runs the recurrence and gates its outputs, some channels a unit."""
    num_rows, num_channels = run.tokens.token_ids.shape[0], run.weights.rates.shape[1]
    weight, scale = run.weights.steps[layer], run.weights.steps_scale[layer]
    bias, skip = run.weights.steps_bias[layer], run.weights.skip[layer]
    work = run.work
    block = block_size(num_channels, barrier)
    num_units = (num_channels + block - 1) // block
    unit = next_unit(barrier, step)
    while unit < num_units:
        begin = unit * block
        end = min(begin + block, num_channels)
        linear_rows(work.selected, num_rows, weight, begin, end, work.dt, scale)
        for row in range(num_rows):
            soften_range(work.dt, row, bias, begin, end)
        _recur_range(run, layer, thread, begin, end)
        for row in range(num_rows):
            skip_gate_range(work.y, skip, work.x, work.entered, num_channels, row, begin, end)
        unit = finish_unit(barrier, step)
    return wait(barrier, step, num_units)


@inlined
def _recur_range(run, layer, thread, begin, end):
    memory, tokens, work = run.memory, run.tokens, run.work
    num_rows, rates = tokens.token_ids.shape[0], run.weights.rates[layer]
    c_column = run.b_column + work.B.shape[1]
    committed = memory.recurrent[layer : layer + 1]
    if tokens.task == SUMS:
        first = tokens.parents.shape[0] - num_rows
        dt, x, B = memory.node_dt[layer], memory.node_x[layer], memory.node_directions[layer]
        for row in range(num_rows):
            copy_range(work.dt, row, begin, end, dt, first + row, begin)
            copy_range(work.x, row, begin, end, x, first + row, begin)
        selection = Selection(rates, dt, x, B, work.selected, c_column, work.y)
        parents, needed, scratch = tokens.parents, tokens.needed, work.scratch[thread]
        run_sums(selection, num_rows, committed, parents, needed, scratch, begin, end)
    else:
        selection = Selection(rates, work.dt, work.x, work.B, work.selected, c_column, work.y)
        states = memory.node_states[layer]
        run_rows(selection, num_rows, committed, states, tokens.parents, begin, end)
