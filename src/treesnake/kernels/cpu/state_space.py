"""What whole networks of Mamba and of Mamba-2 have in common: all but selection and recurrence.

A pass runs a text, or the newest nodes of the trees of one or several texts. Its *rows* are the
tokens of one text after those of another. Matrix products are made for all rows at once;
convolution and recurrence go through the texts one by one, each with its own memory. Each row is
computed by operations whose order does not depend on the other rows, so that a text has the same
bits alone and with others.

Kernels are given the memory of a text by address: texts may come and go without a change of type,
for which everything would be compiled anew. Columns that a thread writes for one text may run over
into the rows of the next text, which the same thread runs afterwards, or into rows to spare.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types

from treesnake.kernels.cpu.addresses import rows_of
from treesnake.kernels.cpu.conv import convolve_range, copy_range, keep_history, keep_path
from treesnake.kernels.cpu.jit import inlined
from treesnake.kernels.cpu.linear import ADD, REPLACE
from treesnake.kernels.cpu.products import round_inputs
from treesnake.kernels.cpu.steps import block_size, embed, multiply, norm
from treesnake.kernels.cpu.team import finish_unit, next_unit, wait

TEXT, COPIES, SUMS, REPLAY = 0, 1, 2, 3
"""What a pass runs: a text, or nodes with one of the ways to branch."""

MEMORIES = ("history", "recurrent", "conv_inputs", "node_states", "node_x", "node_dt", "node_B")
"""What a text's memory is made of: stacks of layers, each with the address of the first layer and,
as `..._stride`, the bytes from one layer to the next. `node_states` are kept by copies, `node_x`,
`node_dt` and `node_B` by sums."""

LAYOUT = ("windows", "parents", "ancestor_mask", "needed")
"""How the rows of a text lie, by address: `windows` (rows, conv_width), the `parents` of all nodes,
`ancestor_mask` (rows, nodes), and which nodes are `needed`: the rows and their ancestors. A text
that is run as such has windows only."""

PART = np.dtype(
    [
        *((name, np.int64) for name in ("first_row", "num_rows", "num_nodes", *LAYOUT)),
        *((f"{name}{what}", np.int64) for name in MEMORIES for what in ("", "_stride")),
    ]
)
"""One text's share of a pass: its rows, the number of its nodes with them, layout and memory."""


class StackWeights(NamedTuple):
    """The weights that both architectures have, those of all layers stacked.

    Matrices are (layers, outputs, inputs) or tables of grouped weights. Convolutions are
    (layers, conv_width, channels). `dt_bias` has an entry for each step size, `D` for each channel
    of the recurrence. Biases may be of width 0.
    """

    embedding: np.ndarray
    norm: np.ndarray
    in_proj: np.ndarray
    in_proj_bias: np.ndarray
    conv: np.ndarray
    conv_bias: np.ndarray
    A: np.ndarray
    D: np.ndarray
    dt_bias: np.ndarray
    out_proj: np.ndarray
    out_proj_bias: np.ndarray
    final_norm: np.ndarray
    head: np.ndarray


class StackWorkspace(NamedTuple):
    """Activations that both architectures have: (rows, width), with rows to spare for whole tiles.

    `projected` is what `in_proj` gives. `B` is (rows * groups, state_dim).
    """

    residual: np.ndarray
    normed: np.ndarray
    projected: np.ndarray
    conv_inputs: np.ndarray
    convolved: np.ndarray
    dt: np.ndarray
    B: np.ndarray
    y: np.ndarray
    rounded: np.ndarray


class MemoryShape(NamedTuple):
    """The sizes of a layer's memory: a state has `num_cells` cells, B of a node `num_groups`."""

    num_cells: int
    state_dim: int
    num_groups: int
    x_width: int
    dt_width: int


class PassRows(NamedTuple):
    """The tokens of all rows, and the texts (`PART`) that they belong to; a text is alone."""

    task: int
    token_ids: np.ndarray
    parts: np.ndarray


class StateSpaceRun(NamedTuple):
    """All that one call reads and writes; `logits` has rows for the last `num_logits` rows.

    Weights and workspace are those of an architecture, of which `stack` is the common part.
    """

    weights: Any
    work: Any
    rows: PassRows
    shape: MemoryShape
    epsilon: np.float32
    num_logits: int
    logits: np.ndarray


_floats_at = rows_of(types.float32)
_numbers_at = rows_of(types.int64)
_truths_at = rows_of(types.boolean)


@inlined
def layer_rows(address, stride, layer, num_rows, width):
    """Returns what a layer has in one of the `MEMORIES`, as so many rows."""
    return _floats_at(address + layer * stride, num_rows, width)


@inlined
def parents_of(part):
    """Returns the parents of a text's nodes."""
    return _numbers_at(part.parents, 1, part.num_nodes)[0]


@inlined
def needed_of(part):
    """Tells of each of a text's nodes whether it is new or an ancestor of a new one."""
    return _truths_at(part.needed, 1, part.num_nodes)[0]


@inlined
def ancestor_mask_of(part):
    """Tells of each of a text's rows which nodes are its ancestors or itself."""
    return _truths_at(part.ancestor_mask, part.num_rows, part.num_nodes)


@inlined
def committed_of(part, shape, layer):
    """Returns the state of a text in a layer, a cell a row."""
    address, stride = part.recurrent, part.recurrent_stride
    return layer_rows(address, stride, layer, shape.num_cells, shape.state_dim)


@inlined
def node_states_of(part, shape, layer):
    """Returns the states of all nodes in a layer, a cell a row; none of a text."""
    num_cells = part.num_nodes * shape.num_cells
    return layer_rows(part.node_states, part.node_states_stride, layer, num_cells, shape.state_dim)


@inlined
def node_x_of(part, shape, layer):
    """Returns x of all nodes."""
    return layer_rows(part.node_x, part.node_x_stride, layer, part.num_nodes, shape.x_width)


@inlined
def node_dt_of(part, shape, layer):
    """Returns dt of all nodes."""
    return layer_rows(part.node_dt, part.node_dt_stride, layer, part.num_nodes, shape.dt_width)


@inlined
def node_b_of(part, shape, layer):
    """Returns B of all nodes, a group a row."""
    num_cells = part.num_nodes * shape.num_groups
    return layer_rows(part.node_B, part.node_B_stride, layer, num_cells, shape.state_dim)


@inlined
def take_state(part, shape, layer, node, begin, end):
    """Makes cells begin..end of the committed state those that were kept after a node."""
    states, committed = node_states_of(part, shape, layer), committed_of(part, shape, layer)
    for cell in range(begin, end):
        kept = node * shape.num_cells + cell
        copy_range(states, kept, 0, shape.state_dim, committed, cell, 0)


@inlined
def push_path(part, conv, layer, path):
    """Makes what the convolution of a layer remembers that of what follows a path."""
    num_history, num_channels = conv.shape[1] - 1, conv.shape[2]
    address, stride = part.history, part.history_stride
    history = layer_rows(address, stride, layer, num_history, num_channels)
    address, stride = part.conv_inputs, part.conv_inputs_stride
    keep_path(layer_rows(address, stride, layer, part.num_nodes, num_channels), path, history)


@inlined
def embed_tokens(barrier, run):
    """Looks up the embeddings: the first step."""
    weights, tokens, out = run.weights.stack, run.rows.token_ids, run.work.stack.residual
    return embed(barrier, 0, tokens, weights.embedding, weights.final_norm.shape[0], out)


@inlined
def write_logits(barrier, step, run):
    """Norms, and writes the logits of the last rows."""
    weights, work = run.weights.stack, run.work.stack
    num_rows = run.rows.token_ids.shape[0]
    final = weights.final_norm
    head, rounded, normed, epsilon = weights.head, work.rounded, work.normed, run.epsilon
    residual = work.residual
    step = norm(barrier, step, residual, num_rows, final, epsilon, normed, head, rounded)
    if run.num_logits > 0:
        first, num_logits, logits = num_rows - run.num_logits, run.num_logits, run.logits
        last, rounded, no_bias = normed[first:], rounded[first:], weights.conv_bias[0, :0]
        multiply(barrier, step, last, num_logits, head, no_bias, rounded, logits, REPLACE)


@inlined
def project_in(barrier, step, run, layer):
    """Norms and projects to what the layer mixes and its gate."""
    weights, work = run.weights.stack, run.work.stack
    num_rows, norm_weight, epsilon = run.rows.token_ids.shape[0], weights.norm[layer], run.epsilon
    x, weight, bias = work.normed, weights.in_proj[layer], weights.in_proj_bias[layer]
    residual, rounded, out = work.residual, work.rounded, work.projected
    step = norm(barrier, step, residual, num_rows, norm_weight, epsilon, x, weight, rounded)
    return multiply(barrier, step, x, num_rows, weight, bias, rounded, out, REPLACE)


@inlined
def round_outputs(barrier, step, run, layer):
    """Rounds the layer's outputs if they are projected back in integers: a step, or none."""
    weight, work, num_rows = (
        run.weights.stack.out_proj[layer],
        run.work.stack,
        run.rows.token_ids.shape[0],
    )
    return round_inputs(barrier, step, work.y, num_rows, weight, work.rounded)


@inlined
def project_out(barrier, step, run, layer):
    """Projects the layer's outputs, which are rounded already, back and adds them."""
    weights, work = run.weights.stack, run.work.stack
    num_rows = run.rows.token_ids.shape[0]
    weight, bias = weights.out_proj[layer], weights.out_proj_bias[layer]
    rounded, out = work.rounded, work.residual
    return multiply(barrier, step, work.y, num_rows, weight, bias, rounded, out, ADD)


@inlined
def convolve(barrier, step, run, layer, column):
    """Keeps the inputs of the convolution and convolves them, some channels a unit.

    The inputs are `projected` from `column` on.
    """
    num_channels = run.weights.stack.conv.shape[2]
    block = block_size(num_channels, barrier)
    num_units = (num_channels + block - 1) // block
    unit = next_unit(barrier, step)
    while unit < num_units:
        begin = unit * block
        end = min(begin + block, num_channels)
        for number in range(run.rows.parts.shape[0]):
            _convolve_part(run, layer, run.rows.parts[number], column, begin, end)
        unit = finish_unit(barrier, step)
    return wait(barrier, step, num_units)


@inlined
def _convolve_part(run, layer, part, column, begin, end):
    weights, work = run.weights.stack, run.work.stack
    weight, bias = weights.conv[layer], weights.conv_bias[layer]
    conv_width, num_channels = weight.shape
    num_rows, first_row = part.num_rows, part.first_row
    history = layer_rows(part.history, part.history_stride, layer, conv_width - 1, num_channels)
    windows = _numbers_at(part.windows, num_rows, conv_width)
    is_text = run.rows.task == TEXT
    inputs, first = work.conv_inputs, 0
    if not is_text:
        address, stride = part.conv_inputs, part.conv_inputs_stride
        inputs = layer_rows(address, stride, layer, part.num_nodes, num_channels)
        first = part.num_nodes - num_rows
    for row in range(num_rows):
        source = first_row + row
        copy_range(work.projected, source, column + begin, column + end, inputs, first + row, begin)
    out = work.convolved[first_row:]
    convolve_range(inputs, history, windows, weight, bias, begin, end, out)
    if is_text:
        keep_history(inputs, num_rows, history, begin, end)
