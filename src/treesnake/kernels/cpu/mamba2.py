"""A whole Mamba-2 in one compiled call: every layer, every step, on every thread.

What the network is, `treesnake.models.mamba2` says; how threads work together, `team`. It runs a
text, moving the committed state along, or the newest nodes of a tree, in either way to branch.

All widths but those of heads are padded with zeros to whole vectors, and the names of axes mean
padded widths.
"""

import math
from typing import NamedTuple

import numpy as np

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.activations import skip_gate_range, soften_range
from treesnake.kernels.cpu.conv import copy_range
from treesnake.kernels.cpu.jit import entry_point, inlined, kernel
from treesnake.kernels.cpu.norm import inverse_rms, scale_range
from treesnake.kernels.cpu.ssd import Selection, run_rows, run_sums, score_row
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
from treesnake.kernels.cpu.team import enter, finish_unit, next_unit, wait

STEPS_PER_LAYER = 8
OTHER_STEPS = 3


class Weights(NamedTuple):
    """Weights as the kernels read them, those of all layers stacked.

    Matrices are (layers, outputs, inputs), each with a scale (layers, outputs). `enter` gives gate,
    x, B, C and step sizes, one after another; convolutions are (layers, conv_width, channels of x,
    B and C). `rates` has an entry a head, `skip` one a channel. Biases may be of width 0.
    """

    embedding: np.ndarray
    embedding_scale: np.ndarray
    norm: np.ndarray
    enter: np.ndarray
    enter_scale: np.ndarray
    enter_bias: np.ndarray
    conv: np.ndarray
    conv_bias: np.ndarray
    steps_bias: np.ndarray
    rates: np.ndarray
    skip: np.ndarray
    gated_norm: np.ndarray
    leave: np.ndarray
    leave_scale: np.ndarray
    leave_bias: np.ndarray
    final_norm: np.ndarray
    head: np.ndarray
    head_scale: np.ndarray


class Workspace(NamedTuple):
    """Activations (rows, width), with rows to spare for whole tiles.

    B is (rows, groups, state_dim), C (groups, rows, state_dim), `scores` (groups, rows, nodes).
    """

    residual: np.ndarray
    normed: np.ndarray
    entered: np.ndarray
    conv_inputs: np.ndarray
    convolved: np.ndarray
    dt: np.ndarray
    B: np.ndarray
    C: np.ndarray
    scores: np.ndarray
    y: np.ndarray


class Run(NamedTuple):
    """All that one call reads and writes; `logits` has rows for the last `num_logits` tokens.

    `ancestor_mask` is (new nodes, all nodes).
    """

    weights: Weights
    memory: Memory
    tokens: Tokens
    ancestor_mask: np.ndarray
    work: Workspace
    epsilon: np.float32
    num_logits: int
    logits: np.ndarray


def count_steps(num_layers: int) -> int:
    """Returns how many steps `run_mamba2` takes at most."""
    return num_layers * STEPS_PER_LAYER + OTHER_STEPS


@entry_point
def run_mamba2(barrier, run):
    """Runs the tokens: changes what is remembered, and writes the logits of the last ones."""
    enter(barrier)
    gates = run.work.y.shape[1]
    step = embed_tokens(barrier, run)
    for layer in range(run.weights.norm.shape[0]):
        step = enter_layer(barrier, step, run, layer)
        step = convolve(barrier, step, run, layer, gates, run.work.convolved)
        step = _select(barrier, step, run, layer)
        if run.tokens.task == SUMS:
            step = _score(barrier, step, run, layer)
        step = _recur(barrier, step, run, layer)
        step = _gate(barrier, step, run, layer)
        step = leave_layer(barrier, step, run, layer)
    write_logits(barrier, step, run)


@inlined
def _select(barrier, step, run, layer):
    """Puts step sizes, x, B and C where the recurrence reads them, a row a unit."""
    tokens, memory, work = run.tokens, run.memory, run.work
    num_rows = tokens.token_ids.shape[0]
    first = tokens.parents.shape[0] - num_rows
    row = next_unit(barrier, step)
    while row < num_rows:
        if tokens.task == SUMS:
            node, x = first + row, memory.node_x[layer]
            copy_range(work.convolved, row, 0, x.shape[1], x, node, 0)
            _select_row(run, layer, row, memory.node_dt[layer], memory.node_directions[layer], node)
        else:
            _select_row(run, layer, row, work.dt, work.B, row)
        row = finish_unit(barrier, step)
    return wait(barrier, step, num_rows)


@inlined
def _select_row(run, layer, row, dt, B, node):
    work = run.work
    num_groups, state_dim = B.shape[1], B.shape[2]
    width = work.y.shape[1]
    entered = work.entered.shape[1]
    copy_range(work.entered, row, entered - dt.shape[1], entered, dt, node, 0)
    soften_range(dt, node, run.weights.steps_bias[layer], 0, dt.shape[1])
    for group in range(num_groups):
        begin = width + group * state_dim
        copy_range(work.convolved, row, begin, begin + state_dim, B[node], group, 0)
        begin += num_groups * state_dim
        copy_range(work.convolved, row, begin, begin + state_dim, work.C[group], row, 0)


@inlined
def _score(barrier, step, run, layer):
    """Multiplies C of the newest nodes with B of their ancestors, a node a unit."""
    num_rows = run.tokens.token_ids.shape[0]
    row = next_unit(barrier, step)
    while row < num_rows:
        score_row(
            run.memory.node_directions[layer], run.work.C, run.ancestor_mask, row, run.work.scores
        )
        row = finish_unit(barrier, step)
    return wait(barrier, step, num_rows)


@inlined
def _recur(barrier, step, run, layer):
    """Runs the recurrence, a head a unit."""
    num_heads = run.weights.rates.shape[1]
    head = next_unit(barrier, step)
    while head < num_heads:
        _recur_head(run, layer, head)
        head = finish_unit(barrier, step)
    return wait(barrier, step, num_heads)


@inlined
def _recur_head(run, layer, head):
    memory, tokens, work = run.memory, run.tokens, run.work
    num_rows, rates = tokens.token_ids.shape[0], run.weights.rates[layer]
    if tokens.task == SUMS:
        dt, x, B = memory.node_dt[layer], memory.node_x[layer], memory.node_directions[layer]
        selection = Selection(rates, dt, x, B, work.C, work.y)
        state = memory.recurrent[layer]
        rows = state.reshape(state.shape[0] * state.shape[1], state.shape[2])
        run_sums(selection, num_rows, rows, run.ancestor_mask, work.scores, head)
    else:
        selection = Selection(rates, work.dt, work.convolved, work.B, work.C, work.y)
        committed, states = memory.recurrent[layer : layer + 1], memory.node_states[layer]
        run_rows(selection, num_rows, committed, states, tokens.parents, head)


@inlined
def _gate(barrier, step, run, layer):
    """Adds the skip connection, gates, and norms each group, a row a unit."""
    work, skip, weight = run.work, run.weights.skip[layer], run.weights.gated_norm[layer]
    num_rows, num_groups = run.tokens.token_ids.shape[0], work.B.shape[1]
    size = weight.shape[0] // num_groups
    row = next_unit(barrier, step)
    while row < num_rows:
        skip_gate_range(work.y, skip, work.convolved, work.entered, 0, row, 0, work.y.shape[1])
        for begin in range(0, weight.shape[0], size):
            end = begin + size
            factor = _inverse_rms(work.y, row, begin, end, run.epsilon)
            scale_range(work.y, row, begin, weight[begin:end], factor)
        row = finish_unit(barrier, step)
    return wait(barrier, step, num_rows)


@kernel
def _inverse_rms(x, row, begin, end, epsilon):
    """Returns 1 / sqrt(mean square + epsilon) of a range, which need not be whole vectors."""
    if (end - begin) % simd.PADDING == 0:
        return np.float32(inverse_rms(x, row, begin, end, end - begin, epsilon))
    total = np.float32(0)
    for place in range(begin, end):
        total += x[row, place] * x[row, place]
    return np.float32(1 / math.sqrt(total / np.float32(end - begin) + epsilon))
