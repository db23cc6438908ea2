"""A whole decoder network in one compiled call: every layer, every step, on every thread.

What the network is, `treesnake.models.transformer` says. Each function below is a step that a team
of threads does together, unit by unit (`treesnake.kernels.cpu.team`). A unit is some rows or some
outputs, computed by kernels whose result does not depend on how the work is cut; so neither the
number of threads nor that of the nodes changes a bit.

The nodes of one call may belong to the trees of several texts, the *parts* of the call. Their rows
lie one behind the other, and matrix products run over all of them. Only attention runs part by
part, each over the cache of its own text.
"""

import math
from typing import NamedTuple

import numpy as np

from treesnake.kernels.cpu.addresses import rows_like
from treesnake.kernels.cpu.attention import (
    MIX_ROWS,
    Scratch,
    TreeView,
    attend,
    keep_row,
    trace_path,
)
from treesnake.kernels.cpu.jit import inlined, kernel
from treesnake.kernels.cpu.linear import ADD, REPLACE
from treesnake.kernels.cpu.norm import (
    add_rms_norm_row,
    gate_range,
    inverse_rms,
    rms_norm_row,
    rotate_range,
    scale_range,
)
from treesnake.kernels.cpu.products import (
    count_outputs,
    embed_row,
    multiply_rows,
    round_input,
    round_inputs,
)
from treesnake.kernels.cpu.steps import block_size, multiply, norm, project
from treesnake.kernels.cpu.team import enter, finish_unit, next_unit, together, wait

STEPS_PER_LAYER = 12
"""Norm, product, heads, scores, rounding, product, norm; then norm, gate, rounding, product, norm.

More steps than are counted would write beyond their counters.
"""

OTHER_STEPS = 4

QUERY_BLOCK = 32
"""Queries of one unit of attention at most: what bounds the scratch of a thread."""

ATTENTION_UNITS = 2
"""Units of attention for each thread at least: queries of one unit share what it reads."""

NO_ROTATION = -1
"""Stands for a way to rotate in layers whose heads do not know positions."""


def count_steps(num_layers: int) -> int:
    """Returns how many steps `decode` takes at most."""
    return num_layers * STEPS_PER_LAYER + OTHER_STEPS


class TransformerSettings(NamedTuple):
    """What is not a weight. Widths are without padding; `head_stride` is the padded `head_dim`.

    What embeddings and scores of attention are multiplied with are their scales. `gate_slope` and
    `gate_cube` say which activation the gates of MLPs have (`norm.GATES`).
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    head_stride: int
    epsilon: np.float32
    embedding_scale: np.float32
    attention_scale: np.float32
    gate_slope: np.float32
    gate_cube: np.float32
    norms_inputs: bool
    norms_outputs: bool


class TransformerWeights(NamedTuple):
    """Weights as the kernels read them, those of all layers stacked.

    In a hybrid, the weights of attention are those of the layers that attend. Matrices are (layers,
    outputs, padded inputs), or tables (layers, blocks) of grouped weights (`products`). Embedding
    and head are those of one layer. Heads are padded to `head_stride` and the two halves of
    `gate_up` to the width of `down`, with rows of zeros. `query_norm` and `key_norm` are as wide as
    what is normed at once, a head or a whole projection, or of width 0; `no_bias` is of width 0.
    The norms before attention and MLP, and those after them (`attention_out_norm`, `mlp_out_norm`),
    are of width 0 where `TransformerSettings` says that there are none. `rotations` says of each
    layer which row of `inverse_frequencies` it rotates its heads with, or `NO_ROTATION`.
    """

    embedding: np.ndarray
    attention_norm: np.ndarray
    attention_out_norm: np.ndarray
    qkv: np.ndarray
    qkv_bias: np.ndarray
    query_norm: np.ndarray
    key_norm: np.ndarray
    attention_out: np.ndarray
    mlp_norm: np.ndarray
    mlp_out_norm: np.ndarray
    gate_up: np.ndarray
    down: np.ndarray
    final_norm: np.ndarray
    head: np.ndarray
    no_bias: np.ndarray
    inverse_frequencies: np.ndarray
    rotations: np.ndarray
    windows: np.ndarray


PART = np.dtype(
    [
        (name, np.int64)
        for name in (
            "keys",
            "values",
            "cache_rows",
            "length",
            "num_nodes",
            "tree_nodes",
            "end_node",
            "end_mask",
            "end_logits",
        )
    ],
    align=True,
)
"""One text of a call, whose nodes to run are the last of its tree; the others have been run before.

`keys` and `values` are the addresses of its cache (layers, kv heads, `cache_rows`, head_stride), in
which `length` tokens are committed. The other numbers but `num_nodes` and `tree_nodes` count this
part and all parts before it: nodes, entries of their masks, nodes of which logits are wanted.
"""


class TransformerWorkspace(NamedTuple):
    """Activations (rows, padded width), with rows for whole tiles, and scratch for each thread.

    `part_of_node` and what describes a node's path are written first and read by every layer, and
    so are `cosines` and `sines` (ways to rotate, nodes, pairs).
    """

    part_of_node: np.ndarray
    positions: np.ndarray
    contiguous: np.ndarray
    path_rows: np.ndarray
    cosines: np.ndarray
    sines: np.ndarray
    residual: np.ndarray
    branch: np.ndarray
    qkv: np.ndarray
    queries: np.ndarray
    attended: np.ndarray
    gate_up: np.ndarray
    gated: np.ndarray
    rounded: np.ndarray
    scores: np.ndarray
    turned_keys: np.ndarray
    path_values: np.ndarray
    mixed: np.ndarray
    totals: np.ndarray


class TransformerRun(NamedTuple):
    """All that one call reads and writes.

    `token_ids` (nodes,) are those of all parts. `masks` has for one node after the other, part by
    part, what it sees of its tree. `cache_kind` (0, head_stride) has the dtype of the caches.
    `logits` (rows, vocab) has rows for whole tiles of `num_logits` nodes.
    """

    settings: TransformerSettings
    weights: TransformerWeights
    parts: np.ndarray
    token_ids: np.ndarray
    masks: np.ndarray
    cache_kind: np.ndarray
    work: TransformerWorkspace
    num_logits: int
    logits: np.ndarray


@together
def decode(barrier, run):
    """Runs new nodes of trees: writes their keys and values, and the logits that are wanted."""
    thread = enter(barrier)
    step = embed_nodes(barrier, 0, run)
    for layer in range(run.settings.num_layers):
        step = run_attention(barrier, step, run, layer, thread)
        step = run_mlp(barrier, step, run, layer)
    write_logits(barrier, step, run)


@inlined
def write_logits(barrier, step, run):
    """Norms the nodes of which logits are wanted, and writes these: the last steps."""
    weights, work = run.weights, run.work
    step = _norm_last(barrier, step, run)
    inputs, num_logits, rounded = work.branch, run.num_logits, work.rounded
    weight, bias, logits = weights.head, weights.no_bias, run.logits
    multiply(barrier, step, inputs, num_logits, weight, bias, rounded, logits, REPLACE)


@inlined
def run_attention(barrier, step, run, layer, thread):
    """Runs the attention of a layer and adds its outputs to the residual stream."""
    settings, weights, work = run.settings, run.weights, run.work
    nodes, norm_weight = run.token_ids.shape[0], weights.attention_norm[layer]
    weight, bias, rounded = weights.qkv[layer], weights.qkv_bias[layer], work.rounded
    inputs = work.branch if settings.norms_inputs else work.residual
    step = _begin_branch(barrier, step, run, norm_weight, weight)
    step = multiply(barrier, step, inputs, nodes, weight, bias, rounded, work.qkv, REPLACE)
    step = _split_heads(barrier, step, run, layer)
    step = _attend(barrier, step, run, layer, thread)
    weight, norm_weight = weights.attention_out[layer], weights.attention_out_norm[layer]
    return _add_branch(barrier, step, run, work.attended, weight, norm_weight)


@inlined
def run_mlp(barrier, step, run, layer):
    """Runs the gated MLP of a layer and adds its outputs to the residual stream."""
    settings, weights, work = run.settings, run.weights, run.work
    nodes, norm_weight = run.token_ids.shape[0], weights.mlp_norm[layer]
    inputs = work.branch if settings.norms_inputs else work.residual
    step = _begin_branch(barrier, step, run, norm_weight, weights.gate_up[layer])
    step = _gate(barrier, step, inputs, nodes, run, layer)
    weight, norm_weight = weights.down[layer], weights.mlp_out_norm[layer]
    return _add_branch(barrier, step, run, work.gated, weight, norm_weight)


@inlined
def _begin_branch(barrier, step, run, norm_weight, weight):
    """Begins attention or MLP: norms the residual if it is to, and rounds for a weight."""
    work, nodes = run.work, run.token_ids.shape[0]
    x, branch, rounded = work.residual, work.branch, work.rounded
    if not run.settings.norms_inputs:
        return round_inputs(barrier, step, x, nodes, weight, rounded)
    epsilon = run.settings.epsilon
    return norm(barrier, step, x, nodes, norm_weight, epsilon, branch, weight, rounded)


@inlined
def _add_branch(barrier, step, run, x, weight, norm_weight):
    """Ends attention or MLP: projects, norms if it is to, and adds to the residual."""
    nodes, epsilon, bias = run.token_ids.shape[0], run.settings.epsilon, run.weights.no_bias
    residual, branch, rounded = run.work.residual, run.work.branch, run.work.rounded
    if not run.settings.norms_outputs:
        return project(barrier, step, x, nodes, weight, bias, rounded, residual, ADD)
    step = project(barrier, step, x, nodes, weight, bias, rounded, branch, REPLACE)
    return _add_norm(barrier, step, branch, nodes, norm_weight, epsilon, residual)


@inlined
def embed_nodes(barrier, step, run):
    """Looks up embeddings, positions and rotations, and what each node sees, a node a unit."""
    weights, nodes = run.weights, run.token_ids.shape[0]
    width = weights.final_norm.shape[0]
    node = next_unit(barrier, step)
    while node < nodes:
        embed_row(weights.embedding, run.token_ids[node], width, run.work.residual, node)
        _scale_row(run.work.residual, node, width, run.settings.embedding_scale)
        _find_path(run, node)
        _find_rotation(run, node)
        node = finish_unit(barrier, step)
    return wait(barrier, step, nodes)


@kernel
def _scale_row(x, row, width, scale):
    for column in range(width):
        x[row, column] *= scale


@inlined
def _find_path(run, node):
    index = 0
    while node >= run.parts[index].end_node:
        index += 1
    part = run.parts[index]
    run.work.part_of_node[node] = index
    end = part.end_mask - (part.end_node - 1 - node) * part.tree_nodes
    trace_path(run.masks[end - part.tree_nodes : end], node, _view(run, part))


@inlined
def _find_rotation(run, node):
    frequencies, work = run.weights.inverse_frequencies, run.work
    for way in range(frequencies.shape[0]):
        for pair in range(frequencies.shape[1]):
            angle = np.float32(work.positions[node]) * frequencies[way, pair]
            work.cosines[way, node, pair] = math.cos(angle)
            work.sines[way, node, pair] = math.sin(angle)


@inlined
def _view(run, part):
    work = run.work
    return TreeView(part.length, work.positions, work.contiguous, work.path_rows)


@inlined
def _cache_of(run, part, address, layer, head):
    """Returns the rows of one head in the keys or values of a part."""
    like = run.cache_kind
    first_row = (layer * run.settings.num_kv_heads + head) * part.cache_rows
    offset = first_row * like.shape[1] * like.itemsize
    return rows_like(address + offset, part.cache_rows, like.shape[1], like)


@inlined
def _norm_last(barrier, step, run):
    """Norms and rounds the nodes of which logits are wanted, and puts them side by side."""
    weight, epsilon, work = run.weights.final_norm, run.settings.epsilon, run.work
    row = next_unit(barrier, step)
    while row < run.num_logits:
        index = 0
        while row >= run.parts[index].end_logits:
            index += 1
        part = run.parts[index]
        node = part.end_node - (part.end_logits - row)
        rms_norm_row(work.residual[node:], 0, weight, epsilon, work.branch[row:])
        round_input(work.branch, row, run.weights.head, work.rounded)
        row = finish_unit(barrier, step)
    return wait(barrier, step, run.num_logits)


@kernel
def _add_norm(barrier, step, x, nodes, weight, epsilon, out):
    node = next_unit(barrier, step)
    while node < nodes:
        add_rms_norm_row(x, node, weight, epsilon, out)
        node = finish_unit(barrier, step)
    return wait(barrier, step, nodes)


@inlined
def _gate(barrier, step, x, nodes, run, layer):
    """Computes activation(gate) * up: a unit is the same outputs of both."""
    settings, work = run.settings, run.work
    weight, rounded, out = run.weights.gate_up[layer], work.rounded, work.gate_up
    slope, cube = settings.gate_slope, settings.gate_cube
    width = count_outputs(weight) // 2
    block = block_size(width, barrier)
    units = (width + block - 1) // block
    unit = next_unit(barrier, step)
    while unit < units:
        begin = unit * block
        end = min(begin + block, width)
        for first in (begin, width + begin):
            stop = first + end - begin
            multiply_rows(x, rounded, nodes, weight, first, stop, out, REPLACE)
        for node in range(nodes):
            gate_range(out, node, begin, end, width, slope, cube, work.gated)
        unit = finish_unit(barrier, step)
    return wait(barrier, step, units)


@inlined
def _split_heads(barrier, step, run, layer):
    """Norms and rotates queries and keys and puts them, and values, where attention reads them."""
    nodes = run.token_ids.shape[0]
    node = next_unit(barrier, step)
    while node < nodes:
        _finish_heads(run, layer, node)
        _keep_heads(run, layer, node)
        node = finish_unit(barrier, step)
    return wait(barrier, step, nodes)


@inlined
def _finish_heads(run, layer, node):
    """Norms and rotates the queries and keys of a node, and scales and groups its queries."""
    settings, weights, work = run.settings, run.weights, run.work
    qkv, stride = work.qkv, settings.head_stride
    keys_begin = settings.num_heads * stride
    values_begin = keys_begin + settings.num_kv_heads * stride
    _norm_heads(qkv, node, 0, keys_begin, weights.query_norm[layer], settings)
    _norm_heads(qkv, node, keys_begin, values_begin, weights.key_norm[layer], settings)
    way = weights.rotations[layer]
    for begin in range(0, 0 if way == NO_ROTATION else values_begin, stride):
        rotate_range(qkv, node, begin, work.cosines[way, node], work.sines[way, node])

    group = settings.num_heads // settings.num_kv_heads
    for head in range(settings.num_heads):
        kv_head, member = divmod(head, group)
        for column in range(stride):
            query = qkv[node, head * stride + column] * settings.attention_scale
            work.queries[kv_head, node * group + member, column] = query


@inlined
def _keep_heads(run, layer, node):
    """Writes the keys and values of a node to the cache of its text."""
    settings, qkv, stride = run.settings, run.work.qkv, run.settings.head_stride
    keys_begin = settings.num_heads * stride
    values_begin = keys_begin + settings.num_kv_heads * stride
    part = run.parts[run.work.part_of_node[node]]
    row = part.length + part.tree_nodes - (part.end_node - node)
    for head in range(settings.num_kv_heads):
        keys = _cache_of(run, part, part.keys, layer, head)
        values = _cache_of(run, part, part.values, layer, head)
        keep_row(qkv, node, keys_begin + head * stride, keys, row)
        keep_row(qkv, node, values_begin + head * stride, values, row)


@kernel
def _norm_heads(x, row, begin, end, weight, settings):
    """Norms `x[row, begin:end]` in place, in parts as wide as the weight, if that is not 0."""
    stride = weight.shape[0]
    if stride == 0:
        return
    width = stride // settings.head_stride * settings.head_dim
    for start in range(begin, end, stride):
        factor = inverse_rms(x, row, start, start + stride, width, settings.epsilon)
        scale_range(x, row, start, weight, factor)


@inlined
def _attend(barrier, step, run, layer, thread):
    """Computes attention: a unit is some queries of one head of one part."""
    kv_heads, work = run.settings.num_kv_heads, run.work
    group = run.settings.num_heads // kv_heads
    scratch = Scratch(
        work.turned_keys[thread],
        work.path_values[thread],
        work.scores[thread],
        work.mixed[thread],
        work.totals[thread],
    )
    window = run.weights.windows[layer]
    block = _query_block(run.token_ids.shape[0] * group, kv_heads, barrier)
    units = 0
    for index in range(run.parts.shape[0]):
        units += kv_heads * _count_blocks(run.parts[index], group, block)

    index, first_unit = 0, 0
    unit = next_unit(barrier, step)
    while unit < units:
        part = run.parts[index]
        blocks = _count_blocks(part, group, block)
        if unit >= first_unit + kv_heads * blocks:
            index, first_unit = index + 1, first_unit + kv_heads * blocks
            continue
        head, number = divmod(unit - first_unit, blocks)
        end_row = part.end_node * group
        begin = end_row - part.num_nodes * group + number * block
        end = min(begin + block, end_row)
        keys = _cache_of(run, part, part.keys, layer, head)
        values = _cache_of(run, part, part.values, layer, head)
        queries, view, out = work.queries[head], _view(run, part), work.attended
        attend(queries, begin, end, group, keys, values, view, window, scratch, out, head)
        unit = finish_unit(barrier, step)
    return wait(barrier, step, units)


@kernel
def _query_block(num_queries, kv_heads, barrier):
    """Returns how many queries of a head are one unit at most."""
    blocks = (ATTENTION_UNITS * barrier.size + kv_heads - 1) // kv_heads
    # Queries of one tile read keys and values once, if there are heads for every thread.
    fewest = MIX_ROWS[0] if kv_heads >= barrier.size else 1
    return min(max((num_queries + blocks - 1) // blocks, fewest), QUERY_BLOCK)


@inlined
def _count_blocks(part, group, block):
    return (part.num_nodes * group + block - 1) // block
