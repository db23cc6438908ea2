"""A whole decoder network in one compiled call: every layer, every step, on every thread.

What the network is, `treesnake.models.transformer` says. Each function below is a step that a team
of threads does together, unit by unit (`treesnake.kernels.cpu.team`). A unit is some rows or some
outputs, computed by kernels whose result does not depend on how the work is cut; so neither the
number of threads nor that of the nodes changes a bit.
"""

import math
from typing import NamedTuple

import numpy as np

from treesnake.kernels.cpu.attention import (
    MIX_ROWS,
    Scratch,
    TreeView,
    attend,
    keep_row,
    trace_path,
)
from treesnake.kernels.cpu.jit import entry_point, inlined, kernel
from treesnake.kernels.cpu.linear import linear_rows, widen_row
from treesnake.kernels.cpu.norm import (
    add_rms_norm_row,
    gate_range,
    inverse_rms,
    rotate_range,
    scale_range,
)
from treesnake.kernels.cpu.steps import (
    UNITS_PER_THREAD,
    add_projection,
    block_size,
    norm,
    project,
)
from treesnake.kernels.cpu.team import enter, finish_unit, next_unit, wait

STEPS_PER_LAYER = 8
OTHER_STEPS = 3

QUERY_BLOCK = 24
"""Queries of one unit of attention at most: what bounds the scratch of a thread."""


def count_steps(num_layers: int) -> int:
    """Returns how many steps `decode` takes."""
    return num_layers * STEPS_PER_LAYER + OTHER_STEPS


class Settings(NamedTuple):
    """What is not a weight. Widths are without padding; `head_stride` is the padded `head_dim`."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    head_stride: int
    epsilon: np.float32
    attention_scale: np.float32
    norms_outputs: bool


class Weights(NamedTuple):
    """Weights as the kernels read them, those of all layers stacked.

    Matrices are (layers, outputs, padded inputs), each with a scale (layers, outputs). Heads are
    padded to `head_stride` and the two halves of `gate_up` to the width of `down`, with rows of
    zeros. `query_norm` and `key_norm` are as wide as what is normed at once, a head or a whole
    projection, or of width 0; `no_bias` is of width 0. A layer that does not rotate its heads does
    not know positions. The norms of attention and MLP come before them, or after them with
    `Settings.norms_outputs`.
    """

    embedding: np.ndarray
    embedding_scale: np.ndarray
    attention_norm: np.ndarray
    qkv: np.ndarray
    qkv_scale: np.ndarray
    qkv_bias: np.ndarray
    query_norm: np.ndarray
    key_norm: np.ndarray
    attention_out: np.ndarray
    attention_out_scale: np.ndarray
    mlp_norm: np.ndarray
    gate_up: np.ndarray
    gate_up_scale: np.ndarray
    down: np.ndarray
    down_scale: np.ndarray
    final_norm: np.ndarray
    head: np.ndarray
    head_scale: np.ndarray
    no_bias: np.ndarray
    inverse_frequencies: np.ndarray
    rotates: np.ndarray
    windows: np.ndarray


class Tree(NamedTuple):
    """The nodes to run: the last of a tree, whose other nodes have been run before.

    `ancestor_mask` is (nodes, tree nodes); `length` tokens are committed.
    """

    token_ids: np.ndarray
    ancestor_mask: np.ndarray
    length: int


class Workspace(NamedTuple):
    """Activations (rows, padded width), with rows for whole tiles, and scratch for each thread."""

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
    scores: np.ndarray
    mixed: np.ndarray
    totals: np.ndarray


class Run(NamedTuple):
    """All that one call reads and writes.

    `keys` and `values` are (layers, kv heads, capacity, head_stride). `logits` (rows, vocab) has
    rows for whole tiles of the last `num_logits` nodes.
    """

    settings: Settings
    weights: Weights
    tree: Tree
    keys: np.ndarray
    values: np.ndarray
    work: Workspace
    num_logits: int
    logits: np.ndarray


@entry_point
def decode(barrier, run):
    """Runs the nodes of a tree: writes their keys and values, and the logits of the last ones."""
    settings, weights, work = run.settings, run.weights, run.work
    nodes = run.tree.token_ids.shape[0]
    thread = enter(barrier)
    step = _embed(barrier, 0, run)
    for layer in range(settings.num_layers):
        step = _attention(barrier, step, run, layer, thread)
        step = _mlp(barrier, step, run, layer)
    weight, scale, bias = weights.head, weights.head_scale, weights.no_bias
    step = norm(
        barrier, step, work.residual, nodes, weights.final_norm, settings.epsilon, work.branch
    )
    last = work.branch[nodes - run.num_logits :]
    project(barrier, step, last, run.num_logits, weight, scale, bias, run.logits)


@inlined
def _attention(barrier, step, run, layer, thread):
    settings, weights, work = run.settings, run.weights, run.work
    nodes, epsilon = run.tree.token_ids.shape[0], settings.epsilon
    norm_weight, inputs = weights.attention_norm[layer], work.residual
    if not settings.norms_outputs:
        step = norm(barrier, step, work.residual, nodes, norm_weight, epsilon, work.branch)
        inputs = work.branch
    weight, scale, bias = weights.qkv[layer], weights.qkv_scale[layer], weights.qkv_bias[layer]
    step = project(barrier, step, inputs, nodes, weight, scale, bias, work.qkv)
    step = _place(barrier, step, run, layer)
    step = _attend(barrier, step, run, layer, thread)
    weight, scale = weights.attention_out[layer], weights.attention_out_scale[layer]
    return _add_branch(barrier, step, run, work.attended, weight, scale, norm_weight)


@inlined
def _mlp(barrier, step, run, layer):
    settings, weights, work = run.settings, run.weights, run.work
    nodes, epsilon = run.tree.token_ids.shape[0], settings.epsilon
    norm_weight, inputs = weights.mlp_norm[layer], work.residual
    if not settings.norms_outputs:
        step = norm(barrier, step, work.residual, nodes, norm_weight, epsilon, work.branch)
        inputs = work.branch
    step = _gate(barrier, step, inputs, nodes, weights, layer, work)
    weight, scale = weights.down[layer], weights.down_scale[layer]
    return _add_branch(barrier, step, run, work.gated, weight, scale, norm_weight)


@inlined
def _add_branch(barrier, step, run, x, weight, scale, norm_weight):
    """Ends attention or MLP: projects, norms if that comes here, and adds to the residual."""
    nodes, epsilon, bias = run.tree.token_ids.shape[0], run.settings.epsilon, run.weights.no_bias
    residual, branch = run.work.residual, run.work.branch
    if not run.settings.norms_outputs:
        return add_projection(barrier, step, x, nodes, weight, scale, bias, residual)
    step = project(barrier, step, x, nodes, weight, scale, bias, branch)
    return _add_norm(barrier, step, branch, nodes, norm_weight, epsilon, residual)


@inlined
def _embed(barrier, step, run):
    """Looks up embeddings, positions and rotations, and what each node sees, a node a unit."""
    weights, tree, work = run.weights, run.tree, run.work
    nodes = tree.token_ids.shape[0]
    node = next_unit(barrier, step)
    while node < nodes:
        token = tree.token_ids[node]
        factor = weights.embedding_scale[token]
        widen_row(weights.embedding, token, factor, work.residual, node)
        trace_path(tree.ancestor_mask, node, _view(run))
        position = work.positions[node]
        for place in range(weights.inverse_frequencies.shape[0]):
            angle = np.float32(position) * weights.inverse_frequencies[place]
            work.cosines[node, place] = math.cos(angle)
            work.sines[node, place] = math.sin(angle)
        node = finish_unit(barrier, step)
    return wait(barrier, step, nodes)


@inlined
def _view(run):
    work = run.work
    return TreeView(run.tree.length, work.positions, work.contiguous, work.path_rows)


@kernel
def _add_norm(barrier, step, x, nodes, weight, epsilon, out):
    node = next_unit(barrier, step)
    while node < nodes:
        add_rms_norm_row(x, node, weight, epsilon, out)
        node = finish_unit(barrier, step)
    return wait(barrier, step, nodes)


@inlined
def _gate(barrier, step, x, nodes, weights, layer, work):
    """Computes silu(gate) * up: a unit is the same outputs of both."""
    weight, scale = weights.gate_up[layer], weights.gate_up_scale[layer]
    width = weight.shape[0] // 2
    block = block_size(width, barrier)
    units = (width + block - 1) // block
    unit = next_unit(barrier, step)
    while unit < units:
        begin = unit * block
        end = min(begin + block, width)
        linear_rows(x, nodes, weight, begin, end, work.gate_up, scale)
        linear_rows(x, nodes, weight, width + begin, width + end, work.gate_up, scale)
        for node in range(nodes):
            gate_range(work.gate_up, node, begin, end, width, work.gated)
        unit = finish_unit(barrier, step)
    return wait(barrier, step, units)


@inlined
def _place(barrier, step, run, layer):
    """Norms and rotates queries and keys and puts them, and values, where attention reads them."""
    nodes = run.tree.token_ids.shape[0]
    node = next_unit(barrier, step)
    while node < nodes:
        _place_node(run, layer, node)
        node = finish_unit(barrier, step)
    return wait(barrier, step, nodes)


@inlined
def _place_node(run, layer, node):
    settings, weights, tree, work = run.settings, run.weights, run.tree, run.work
    qkv, stride = work.qkv, settings.head_stride
    keys_begin = settings.num_heads * stride
    values_begin = keys_begin + settings.num_kv_heads * stride
    _norm_heads(qkv, node, 0, keys_begin, weights.query_norm[layer], settings)
    _norm_heads(qkv, node, keys_begin, values_begin, weights.key_norm[layer], settings)
    for begin in range(0, values_begin if weights.rotates[layer] else 0, stride):
        rotate_range(qkv, node, begin, work.cosines[node], work.sines[node])

    group = settings.num_heads // settings.num_kv_heads
    for head in range(settings.num_heads):
        kv_head, member = divmod(head, group)
        for place in range(stride):
            query = qkv[node, head * stride + place] * settings.attention_scale
            work.queries[kv_head, node * group + member, place] = query
    row = tree.length + tree.ancestor_mask.shape[1] - tree.ancestor_mask.shape[0] + node
    for head in range(settings.num_kv_heads):
        keep_row(qkv, node, keys_begin + head * stride, run.keys[layer, head], row)
        keep_row(qkv, node, values_begin + head * stride, run.values[layer, head], row)


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
    settings, work = run.settings, run.work
    kv_heads = settings.num_kv_heads
    group = settings.num_heads // kv_heads
    view = _view(run)
    scratch = Scratch(work.scores[thread], work.mixed[thread], work.totals[thread])
    window = run.weights.windows[layer]

    rows = run.tree.token_ids.shape[0] * group
    blocks = (UNITS_PER_THREAD * barrier.size + kv_heads - 1) // kv_heads
    # Queries of one tile read keys and values once, if there are heads for every thread.
    fewest = MIX_ROWS if kv_heads >= barrier.size else 1
    block = min(max((rows + blocks - 1) // blocks, fewest), QUERY_BLOCK)
    blocks = (rows + block - 1) // block
    unit = next_unit(barrier, step)
    while unit < kv_heads * blocks:
        head, number = divmod(unit, blocks)
        begin = number * block
        end = min(begin + block, rows)
        keys, values = run.keys[layer, head], run.values[layer, head]
        queries, out = work.queries[head], work.attended
        attend(queries, begin, end, group, keys, values, view, window, scratch, out, head)
        unit = finish_unit(barrier, step)
    return wait(barrier, step, kv_heads * blocks)
