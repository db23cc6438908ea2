"""What whole networks of Mamba and of Mamba-2 have in common: all but selection and recurrence.

Each has a `Run` of its own with the same names: `weights`, `memory`, `tokens`, `work`, `epsilon`,
`num_logits` and `logits`.
"""

from typing import NamedTuple

import numpy as np

from treesnake.kernels.cpu.conv import convolve_range, copy_range, keep_history
from treesnake.kernels.cpu.jit import inlined
from treesnake.kernels.cpu.steps import add_projection, block_size, embed, norm, project
from treesnake.kernels.cpu.team import finish_unit, next_unit, wait

TEXT, COPIES, SUMS = 0, 1, 2
"""What a call runs: a text, or nodes with either way to branch."""


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


@inlined
def embed_tokens(barrier, run):
    """Looks up the embeddings: the first step."""
    weights, tokens = run.weights, run.tokens.token_ids
    return embed(barrier, 0, tokens, weights.embedding, weights.embedding_scale, run.work.residual)


@inlined
def write_logits(barrier, step, run):
    """Norms, and writes the logits of the last tokens."""
    weights, work = run.weights, run.work
    num_rows = run.tokens.token_ids.shape[0]
    final = weights.final_norm
    step = norm(barrier, step, work.residual, num_rows, final, run.epsilon, work.normed)
    last, no_bias = work.normed[num_rows - run.num_logits :], weights.conv_bias[0, :0]
    if run.num_logits > 0:
        head, scale = weights.head, weights.head_scale
        project(barrier, step, last, run.num_logits, head, scale, no_bias, run.logits)


@inlined
def enter_layer(barrier, step, run, layer):
    """Norms and projects to what the layer mixes and its gate."""
    weights, work = run.weights, run.work
    num_rows, weight = run.tokens.token_ids.shape[0], weights.norm[layer]
    step = norm(barrier, step, work.residual, num_rows, weight, run.epsilon, work.normed)
    weight, scale, bias = (
        weights.enter[layer],
        weights.enter_scale[layer],
        weights.enter_bias[layer],
    )
    return project(barrier, step, work.normed, num_rows, weight, scale, bias, work.entered)


@inlined
def leave_layer(barrier, step, run, layer):
    """Projects the layer's outputs back and adds them."""
    weights, work = run.weights, run.work
    num_rows = run.tokens.token_ids.shape[0]
    weight, scale, bias = (
        weights.leave[layer],
        weights.leave_scale[layer],
        weights.leave_bias[layer],
    )
    return add_projection(barrier, step, work.y, num_rows, weight, scale, bias, work.residual)


@inlined
def convolve(barrier, step, run, layer, column, out):
    """Keeps the inputs of the convolution and convolves them, some channels a unit.

    The inputs are `work.entered` from `column` on.
    """
    tokens, work = run.tokens, run.work
    history = run.memory.history[layer]
    weight, bias = run.weights.conv[layer], run.weights.conv_bias[layer]
    num_rows, num_channels = tokens.token_ids.shape[0], weight.shape[1]
    is_text = tokens.task == TEXT
    inputs = work.conv_inputs if is_text else run.memory.conv_inputs[layer]
    first = 0 if is_text else tokens.parents.shape[0] - num_rows
    block = block_size(num_channels, barrier)
    num_units = (num_channels + block - 1) // block
    unit = next_unit(barrier, step)
    while unit < num_units:
        begin = unit * block
        end = min(begin + block, num_channels)
        for row in range(num_rows):
            copy_range(work.entered, row, column + begin, column + end, inputs, first + row, begin)
        convolve_range(inputs, history, tokens.windows, weight, bias, begin, end, out)
        if is_text:
            keep_history(inputs, num_rows, history, begin, end)
        unit = finish_unit(barrier, step)
    return wait(barrier, step, num_units)
