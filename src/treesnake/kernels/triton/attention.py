"""Attention of tree nodes over a cache in Triton, and what puts the nodes into the cache.

Many programs share the rows of one head: each attends to a part of them, and another kernel weighs
what the parts made (flash-decoding). All nodes see the whole text, so only the columns of the tree
have a mask. Lengths are read from the device: programs whose part lies behind a text do nothing.
The readable form is `treesnake.kernels.reference.attention`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from treesnake.kernels.triton import products

BLOCKS = {2: (64, 64), 4: (16, 32)}
"""Rows that are read together, and most queries of a program, by the bytes of a number: float32 has
less room in shared memory."""

SMALLEST_PART, MOST_PARTS = 256, 64
"""Rows of the cache in a part, and parts."""

SMALLEST_QUERIES = 16
"""Queries of a program, from all heads that share keys: at least what a matrix product has."""


@triton.jit
def _place_kernel(
    qkv,
    query_norm,
    key_norm,
    cosines,
    sines,
    slots,
    cache_rows,
    keys,
    values,
    queries,
    num_nodes,
    num_heads,
    num_kv_heads,
    head_dim,
    num_pairs,
    slot_stride,
    head_stride,
    epsilon,
    HAS_NORM: tl.constexpr,
    ROTATES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """One head of one node: norms, turns, and writes it to where it is read."""
    node, head = tl.program_id(0), tl.program_id(1)
    dims = tl.arange(0, BLOCK_DIM)
    inside = dims < head_dim
    is_query, is_value = head < num_heads, head >= num_heads + num_kv_heads
    start = qkv + (node * (num_heads + 2 * num_kv_heads) + head) * head_dim
    value = tl.load(start + dims, inside, 0.0).to(tl.float32)
    # The other half of each pair; what lies behind the pairs is not turned.
    partners = tl.where(dims < num_pairs, dims + num_pairs, dims - num_pairs)
    turned = dims < 2 * num_pairs
    partner = tl.load(start + partners, inside & turned, 0.0).to(tl.float32)
    if head < num_heads + num_kv_heads:
        if HAS_NORM:
            scale = 1 / tl.sqrt(tl.sum(value * value, axis=0) / head_dim + epsilon)
            if is_query:
                own = tl.load(query_norm + dims, inside, 0.0).to(tl.float32)
                other = tl.load(query_norm + partners, inside & turned, 0.0).to(tl.float32)
            else:
                own = tl.load(key_norm + dims, inside, 0.0).to(tl.float32)
                other = tl.load(key_norm + partners, inside & turned, 0.0).to(tl.float32)
            value = value * scale * own
            partner = partner * scale * other
        if ROTATES:
            angles = node * num_pairs + tl.where(dims < num_pairs, dims, dims - num_pairs)
            cosine = tl.load(cosines + angles, inside & turned, 1.0)
            sine = tl.load(sines + angles, inside & turned, 0.0)
            value = value * cosine + tl.where(dims < num_pairs, -partner, partner) * sine
    slot = tl.load(slots + node // num_nodes).to(tl.int64)
    place = slot * slot_stride + tl.load(cache_rows + node) * head_dim + dims
    if is_query:
        tl.store(queries + (node * num_heads + head) * head_dim + dims, value, inside)
    elif is_value:
        kv_head = head - num_heads - num_kv_heads
        tl.store(values + place + kv_head * head_stride, value, inside)
    else:
        tl.store(keys + place + (head - num_heads) * head_stride, value, inside)


@triton.jit
def _attend_kernel(
    queries,
    keys,
    values,
    slots,
    lengths,
    positions,
    tree_mask,
    mixed_parts,
    best_parts,
    total_parts,
    num_nodes,
    num_tree_nodes,
    num_heads,
    num_kv_heads,
    head_dim,
    num_rows,
    part_rows,
    num_queries,
    slot_stride,
    head_stride,
    window,
    scale,
    HAS_WINDOW: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Some queries that share keys over a part of the rows; the whole is mixed at once."""
    text, kv_head = tl.program_id(0) // num_kv_heads, tl.program_id(0) % num_kv_heads
    part = tl.program_id(1)
    group = num_heads // num_kv_heads
    members = tl.program_id(2) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    nodes, dims = text * num_nodes + members // group, tl.arange(0, BLOCK_DIM)
    present, real = members < num_nodes * group, dims < head_dim
    query_at = nodes * num_heads + kv_head * group + members % group
    shown = present[:, None] & real[None, :]
    query = tl.load(queries + query_at[:, None] * head_dim + dims[None, :], shown, 0.0)
    base = tl.load(slots + text).to(tl.int64) * slot_stride + kv_head * head_stride
    length = tl.load(lengths + text).to(tl.int32)
    begin = part * part_rows
    end = tl.minimum(begin + part_rows, tl.minimum(length + num_tree_nodes, num_rows))
    position = tl.load(positions + nodes, present, 0).to(tl.int32)
    if HAS_WINDOW:
        # No node sees rows before; a node of the tree has at least the position `length`.
        begin = tl.maximum(begin, (length + 1 - window) // BLOCK_ROWS * BLOCK_ROWS)
    best = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    mixed = tl.zeros([BLOCK_QUERIES, BLOCK_DIM], tl.float32)
    for first in range(begin, end, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        written, in_text = rows < end, rows < length
        columns = nodes[:, None] * num_tree_nodes + (rows - length)[None, :]
        in_tree = present[:, None] & (written & (rows >= length))[None, :]
        seen = tl.load(tree_mask + columns, in_tree, 0) != 0
        if HAS_WINDOW:
            near = rows[None, :] > position[:, None] - window
            seen = seen | (in_text & written)[None, :] & near
        else:
            seen = seen | (in_text & written)[None, :]
        cells = base + rows[:, None] * head_dim + dims[None, :]
        held = written[:, None] & real[None, :]
        key = tl.load(keys + cells, held, 0.0)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        # Where nothing was seen yet, there is nothing to compare with.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - shift[:, None])
        kept = tl.exp(best - shift)
        total = total * kept + tl.sum(weights, axis=1)
        value = tl.load(values + cells, held, 0.0)
        added = tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
        mixed = mixed * kept[:, None] + added
        best = higher
    if IS_WHOLE:
        mixed = mixed / total[:, None]
        tl.store(mixed_parts + query_at[:, None] * head_dim + dims[None, :], mixed, shown)
    else:
        at = part * num_queries + query_at
        tl.store(mixed_parts + at[:, None] * head_dim + dims[None, :], mixed, shown)
        tl.store(best_parts + at, best, present)
        tl.store(total_parts + at, total, present)


@triton.jit
def _combine_kernel(
    mixed_parts,
    best_parts,
    total_parts,
    out,
    num_parts,
    num_queries,
    head_dim,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Weighs what the parts made of one query."""
    query = tl.program_id(0)
    parts, dims = tl.arange(0, BLOCK_PARTS), tl.arange(0, BLOCK_DIM)
    there, real = parts < num_parts, dims < head_dim
    at = parts * num_queries + query
    best = tl.load(best_parts + at, there, float("-inf"))
    weights = tl.exp(best - tl.max(best, axis=0))
    total = tl.sum(weights * tl.load(total_parts + at, there, 0.0), axis=0)
    cells = at[:, None] * head_dim + dims[None, :]
    mixed = tl.load(mixed_parts + cells, there[:, None] & real[None, :], 0.0)
    result = tl.sum(weights[:, None] * mixed, axis=0) / total
    tl.store(out + query * head_dim + dims, result, real)


@dataclass(frozen=True, eq=False)
class CacheNodes:
    """The new nodes of some texts' trees, and where a layer's keys and values are.

    Attributes:
        keys: of all slots, one layer's.
        values: likewise.
        slots: those of the texts.
        lengths: the committed tokens of each.
        positions: of the nodes in their texts.
        tree_mask: which nodes of its tree each of them sees.
        cache_rows: the row that each of them writes.
        num_rows: rows from here on belong to no text.
    """

    keys: Float[Tensor, "all_slots kv_heads capacity head_dim"]
    values: Float[Tensor, "all_slots kv_heads capacity head_dim"]
    slots: Int[Tensor, " slots"]
    lengths: Int[Tensor, " slots"]
    positions: Int[Tensor, "slots nodes"]
    tree_mask: Bool[Tensor, "slots nodes tree_nodes"]
    cache_rows: Int[Tensor, "slots nodes"]
    num_rows: int


@dataclass(frozen=True, eq=False)
class HeadForm:
    """How a layer makes queries and keys.

    Attributes:
        num_heads: of queries.
        query_norm: the weight of the norm of each head; of width 0 if there is none.
        key_norm: likewise.
        epsilon: of the norms.
        turns: cosines and sines of each node's position, or None where nothing is turned.
    """

    num_heads: int
    query_norm: Float[Tensor, " query_norm_width"]
    key_norm: Float[Tensor, " key_norm_width"]
    epsilon: float
    turns: tuple[Float[Tensor, "slots_nodes pairs"], Float[Tensor, "slots_nodes pairs"]] | None


def place(
    qkv: Float[Tensor, "slots_nodes qkv_width"], form: HeadForm, nodes: CacheNodes
) -> Float[Tensor, "slots_nodes heads head_dim"]:
    """Norms and turns queries and keys, writes keys and values to the cache, returns queries."""
    num_kv_heads, _, head_dim = nodes.keys.shape[1:]
    assert nodes.keys[0].is_contiguous(), "rows are written in place"
    queries = qkv.new_empty(len(qkv), form.num_heads, head_dim)
    cosines, sines = form.turns or (qkv, qkv)
    _place_kernel[(len(qkv), form.num_heads + 2 * num_kv_heads)](
        qkv,
        form.query_norm,
        form.key_norm,
        cosines,
        sines,
        nodes.slots,
        nodes.cache_rows,
        nodes.keys,
        nodes.values,
        queries,
        nodes.cache_rows.shape[1],
        form.num_heads,
        num_kv_heads,
        head_dim,
        0 if form.turns is None else cosines.shape[1],
        nodes.keys.stride(0),
        nodes.keys.stride(1),
        form.epsilon,
        HAS_NORM=len(form.query_norm) > 0,
        ROTATES=form.turns is not None,
        BLOCK_DIM=triton.next_power_of_2(head_dim),
    )
    return queries


def attend(
    queries: Float[Tensor, "slots_nodes heads head_dim"],
    nodes: CacheNodes,
    scale: float,
    window: int | None,
) -> Float[Tensor, "slots_nodes heads head_dim"]:
    """Mixes the values that each node sees: its text and its ancestors.

    A window must not be shorter than the tree has nodes.
    """
    num_slots, num_nodes, num_tree_nodes = nodes.tree_mask.shape
    num_heads, head_dim = queries.shape[1:]
    num_kv_heads, num_queries = nodes.keys.shape[1], len(queries) * num_heads
    part_rows = max(SMALLEST_PART, triton.next_power_of_2(triton.cdiv(nodes.num_rows, MOST_PARTS)))
    num_parts = triton.cdiv(nodes.num_rows, part_rows)
    of_group = num_nodes * (num_heads // num_kv_heads)
    block_rows, most = BLOCKS[queries.element_size()]
    block = min(max(triton.next_power_of_2(of_group), SMALLEST_QUERIES), most)
    out = torch.empty_like(queries)
    mixed, sums = out, out
    if num_parts > 1:
        mixed = torch.empty(num_parts, *out.shape, dtype=torch.float32, device=out.device)
        sums = torch.empty(2, num_parts, num_queries, dtype=torch.float32, device=out.device)
    _attend_kernel[(num_slots * num_kv_heads, num_parts, triton.cdiv(of_group, block))](
        queries,
        nodes.keys,
        nodes.values,
        nodes.slots,
        nodes.lengths,
        nodes.positions,
        nodes.tree_mask.view(torch.int8),
        mixed,
        sums[0],
        sums[1] if num_parts > 1 else sums[0],
        num_nodes,
        num_tree_nodes,
        num_heads,
        num_kv_heads,
        head_dim,
        nodes.num_rows,
        part_rows,
        num_queries,
        nodes.keys.stride(0),
        nodes.keys.stride(1),
        window or 0,
        scale,
        HAS_WINDOW=window is not None,
        IS_WHOLE=num_parts == 1,
        PRECISION=products.PRECISION,
        BLOCK_QUERIES=block,
        BLOCK_ROWS=block_rows,
        BLOCK_DIM=max(triton.next_power_of_2(head_dim), 16),
        num_warps=8 if block == most else 4,  # pyrefly: ignore[unexpected-keyword]
    )
    if num_parts > 1:
        _combine_kernel[(num_queries,)](
            mixed,
            sums[0],
            sums[1],
            out,
            num_parts,
            num_queries,
            head_dim,
            BLOCK_PARTS=triton.next_power_of_2(num_parts),
            BLOCK_DIM=triton.next_power_of_2(head_dim),
        )
    return out
