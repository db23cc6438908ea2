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
from treesnake.kernels.cpu.conv import convolve_range, copy_range, keep_history
from treesnake.kernels.cpu.jit import entry_point, inlined
from treesnake.kernels.cpu.linear import linear_rows
from treesnake.kernels.cpu.ssm_rows import Selection, run_rows, run_sums
from treesnake.kernels.cpu.steps import (
    add_projection,
    block_size,
    embed,
    norm,
    project,
)
from treesnake.kernels.cpu.team import enter, finish, take, wait

STEPS_PER_LAYER = 6
OTHER_STEPS = 3

TEXT, COPIES, SUMS = 0, 1, 2
"""What a call runs: a text, or nodes with either way to branch."""


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


class Memory(NamedTuple):
    """What a sequence's state holds, layer by layer; nodes have rows in the order of appending.

    `node_states` is for copies; `node_x`, `node_dt` and `node_directions`, which are B, are for
    sums; what the way to branch does not need has no rows.
    """

    history: np.ndarray
    recurrent: np.ndarray
    conv_inputs: np.ndarray
    node_states: np.ndarray
    node_x: np.ndarray
    node_dt: np.ndarray
    node_directions: np.ndarray


class Tokens(NamedTuple):
    """What to run: the tokens of a text, or the newest nodes of a tree.

    `windows` has a row for each of them. `parents` and `needed` are of all nodes of a tree; needed
    are the newest and their ancestors.
    """

    task: int
    token_ids: np.ndarray
    windows: np.ndarray
    parents: np.ndarray
    needed: np.ndarray


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
def run_mamba(crew, run):
    """Runs the tokens: changes what is remembered, and writes the logits of the last ones."""
    weights, work = run.weights, run.work
    num_rows = run.tokens.token_ids.shape[0]
    thread = enter(crew)
    tokens, scale = run.tokens.token_ids, weights.embedding_scale
    step = embed(crew, 0, tokens, weights.embedding, scale, work.residual)
    for layer in range(weights.norm.shape[0]):
        step = _layer(crew, step, run, layer, thread)
    final = weights.final_norm
    step = norm(crew, step, work.residual, num_rows, final, run.epsilon, work.normed)
    last, bias = work.normed[num_rows - run.num_logits :], weights.conv_bias[0, :0]
    if run.num_logits > 0:
        head, scale = weights.head, weights.head_scale
        project(crew, step, last, run.num_logits, head, scale, bias, run.logits)


@inlined
def _layer(crew, step, run, layer, thread):
    weights, work = run.weights, run.work
    num_rows = run.tokens.token_ids.shape[0]
    weight = weights.norm[layer]
    step = norm(crew, step, work.residual, num_rows, weight, run.epsilon, work.normed)
    weight, scale, bias = (
        weights.enter[layer],
        weights.enter_scale[layer],
        weights.enter_bias[layer],
    )
    step = project(crew, step, work.normed, num_rows, weight, scale, bias, work.entered)
    step = _convolve(crew, step, run, layer)
    step = _select(crew, step, run, layer)
    step = _recur(crew, step, run, layer, thread)
    weight, scale, bias = (
        weights.leave[layer],
        weights.leave_scale[layer],
        weights.leave_bias[layer],
    )
    return add_projection(crew, step, work.y, num_rows, weight, scale, bias, work.residual)


@inlined
def _convolve(crew, step, run, layer):
    """Keeps the inputs of the convolution and convolves them, some channels a unit."""
    tokens, work = run.tokens, run.work
    history = run.memory.history[layer]
    weight, bias = run.weights.conv[layer], run.weights.conv_bias[layer]
    num_rows, num_channels = tokens.token_ids.shape[0], weight.shape[1]
    is_text = tokens.task == TEXT
    inputs = work.conv_inputs if is_text else run.memory.conv_inputs[layer]
    first = 0 if is_text else tokens.parents.shape[0] - num_rows
    block = block_size(num_channels, crew)
    num_units = (num_channels + block - 1) // block
    unit = take(crew, step)
    while unit < num_units:
        begin = unit * block
        end = min(begin + block, num_channels)
        for row in range(num_rows):
            copy_range(work.entered, row, begin, end, inputs, first + row, begin)
        convolve_range(inputs, history, tokens.windows, weight, bias, begin, end, work.x)
        if is_text:
            keep_history(inputs, num_rows, history, begin, end)
        unit = finish(crew, step)
    return wait(crew, step, num_units)


@inlined
def _select(crew, step, run, layer):
    """Makes low-rank step sizes, B and C; keeps B where the recurrence reads it."""
    tokens, work = run.tokens, run.work
    weight, scale = run.weights.select[layer], run.weights.select_scale[layer]
    num_rows, num_outputs = tokens.token_ids.shape[0], weight.shape[0]
    is_sums = tokens.task == SUMS
    B = run.memory.node_directions[layer] if is_sums else work.B
    first = tokens.parents.shape[0] - num_rows if is_sums else 0
    block = block_size(num_outputs, crew)
    num_units = (num_outputs + block - 1) // block
    unit = take(crew, step)
    while unit < num_units:
        begin = unit * block
        end = min(begin + block, num_outputs)
        linear_rows(work.x, num_rows, weight, begin, end, work.selected, scale)
        for row in range(num_rows):
            for column in range(max(begin, run.b_column), min(end, run.b_column + B.shape[1])):
                B[first + row, column - run.b_column] = work.selected[row, column]
        unit = finish(crew, step)
    return wait(crew, step, num_units)


@inlined
def _recur(crew, step, run, layer, thread):
    """Makes step sizes, runs the recurrence and gates its outputs, some channels a unit."""
    num_rows, num_channels = run.tokens.token_ids.shape[0], run.weights.rates.shape[1]
    weight, scale = run.weights.steps[layer], run.weights.steps_scale[layer]
    bias, skip = run.weights.steps_bias[layer], run.weights.skip[layer]
    work = run.work
    block = block_size(num_channels, crew)
    num_units = (num_channels + block - 1) // block
    unit = take(crew, step)
    while unit < num_units:
        begin = unit * block
        end = min(begin + block, num_channels)
        linear_rows(work.selected, num_rows, weight, begin, end, work.dt, scale)
        for row in range(num_rows):
            soften_range(work.dt, row, bias, begin, end)
        _recur_range(run, layer, thread, begin, end)
        for row in range(num_rows):
            skip_gate_range(work.y, skip, work.x, work.entered, num_channels, row, begin, end)
        unit = finish(crew, step)
    return wait(crew, step, num_units)


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
