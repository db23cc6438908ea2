"""The state space dual of Mamba-2 in Triton: a head a program, or a part of one.

Functions are those of `treesnake.kernels.reference.ssd`; so are names. A text goes through in
chunks, whose weights are matrix products, with the state between chunks in registers; the gradient
is the reference's, which consists of matrix products as well.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.reference import ssd as reference
from treesnake.kernels.tree_rows import TreeRows
from treesnake.kernels.triton import products
from treesnake.kernels.triton.gradients import with_gradient_of

CHUNK = 16
"""Tokens of a chunk: few enough for the registers of a program."""

BLOCK_ROWS = 16
"""Rows of a head's state in one program; at least 16, the smallest matrix product."""


@triton.jit
def _scan_kernel(
    x,
    dt,
    A,
    B,
    C,
    D,
    states,
    y,
    num_tokens,
    num_heads,
    num_groups,
    head_dim,
    state_dim,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
):
    text, head = tl.program_id(0), tl.program_id(1)
    rows = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    columns, tokens = tl.arange(0, BLOCK_STATE), tl.arange(0, CHUNK)
    inside, real = rows < head_dim, columns < state_dim
    group = head * num_groups // num_heads
    rate = tl.load(A + head).to(tl.float32)
    skip = tl.load(D + head).to(tl.float32)
    cells = ((text * num_heads + head) * head_dim + rows)[:, None] * state_dim + columns[None, :]
    valid = inside[:, None] & real[None, :]
    state = tl.load(states + cells, valid, 0.0)
    for begin in range(0, num_tokens, CHUNK):
        # Tokens beyond the end have steps of size zero, which change nothing.
        present = begin + tokens < num_tokens
        at = text * num_tokens + begin + tokens
        steps = tl.load(dt + at * num_heads + head, present, 0.0).to(tl.float32)
        log_decays = tl.cumsum(steps * rate, axis=0)
        total = tl.sum(steps * rate, axis=0)
        inputs_at = ((at * num_heads + head) * head_dim)[:, None] + rows[None, :]
        shown = present[:, None] & inside[None, :]
        inputs = tl.load(x + inputs_at, shown, 0.0).to(tl.float32)
        shared_at = ((at * num_groups + group) * state_dim)[:, None] + columns[None, :]
        shared_shown = present[:, None] & real[None, :]
        directions = tl.load(B + shared_at, shared_shown, 0.0).to(tl.float32)
        readers = tl.load(C + shared_at, shared_shown, 0.0).to(tl.float32)

        gaps = log_decays[:, None] - log_decays[None, :]
        causal = tokens[:, None] >= tokens[None, :]
        decays = tl.exp(tl.where(causal, gaps, float("-inf")))
        scores = tl.dot(readers, tl.trans(directions), input_precision=PRECISION)
        amounts = inputs * steps[:, None]
        output = tl.dot(scores * decays, amounts, input_precision=PRECISION)
        kept = tl.dot(readers, tl.trans(state), input_precision=PRECISION)
        output += kept * tl.exp(log_decays)[:, None] + skip * inputs
        tl.store(y + inputs_at, output, shown)

        until_end = amounts * tl.exp(total - log_decays)[:, None]
        written = tl.dot(tl.trans(until_end), directions, input_precision=PRECISION)
        state = tl.exp(total) * state + written
    tl.store(states + cells, state, valid)


@triton.jit
def _extend_copies_kernel(
    x,
    dt,
    A,
    B,
    C,
    D,
    committed,
    node_states,
    slots,
    node_rows,
    parents,
    y,
    num_rows,
    num_new,
    num_heads,
    num_groups,
    head_dim,
    state_dim,
    BLOCK: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
):
    """Walks the new nodes of a tree in order; a parent's state is loaded by its row."""
    head, tree = tl.program_id(0), tl.program_id(2)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, BLOCK_STATE)
    inside, real = rows < head_dim, columns < state_dim
    cells = (head * head_dim + rows)[:, None] * state_dim + columns[None, :]
    valid = inside[:, None] & real[None, :]
    state_size = num_heads * head_dim * state_dim
    slot = tl.load(slots + tree)
    committed += slot * state_size
    node_states += slot * num_rows * state_size
    group = head * num_groups // num_heads
    rate = tl.load(A + head).to(tl.float32)
    skip = tl.load(D + head).to(tl.float32)
    for node in range(tree * num_new, (tree + 1) * num_new):
        parent = tl.load(parents + node)
        if parent < 0:
            old = tl.load(committed + cells, valid, 0.0)
        else:
            old = tl.load(node_states + parent * state_size + cells, valid, 0.0)
        step = tl.load(dt + node * num_heads + head).to(tl.float32)
        inputs_at = (node * num_heads + head) * head_dim + rows
        value = tl.load(x + inputs_at, inside, 0.0).to(tl.float32)
        shared_at = (node * num_groups + group) * state_dim + columns
        direction = tl.load(B + shared_at, real, 0.0).to(tl.float32)
        reader = tl.load(C + shared_at, real, 0.0).to(tl.float32)
        state = tl.exp(step * rate) * old + (step * value)[:, None] * direction[None, :]
        tl.store(node_states + tl.load(node_rows + node) * state_size + cells, state, valid)
        output = tl.sum(state * reader[None, :], axis=1) + skip * value
        tl.store(y + inputs_at, output, inside)
        # A child may be next: its parent's state must have arrived for all threads.
        tl.debug_barrier()


@triton.jit
def _extend_sums_kernel(
    x,
    dt,
    A,
    B,
    C,
    D,
    committed,
    slots,
    node_rows,
    ancestor_mask,
    y,
    num_rows,
    num_nodes,
    num_new,
    num_heads,
    num_groups,
    head_dim,
    state_dim,
    BLOCK: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
):
    """Sums over one new node's ancestors, from itself up to the root."""
    node, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + node // num_new)
    rows = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, BLOCK_STATE)
    inside, real = rows < head_dim, columns < state_dim
    x += slot * num_rows * num_heads * head_dim
    dt += slot * num_rows * num_heads
    B += slot * num_rows * num_groups * state_dim
    committed += slot * num_heads * head_dim * state_dim
    group = head * num_groups // num_heads
    rate = tl.load(A + head).to(tl.float32)
    reader_at = (node * num_groups + group) * state_dim + columns
    reader = tl.load(C + reader_at, real, 0.0).to(tl.float32)
    # A sum over no entries is a zero of the type that the loop carries.
    log_decay = tl.sum(tl.zeros([BLOCK_STATE], tl.float32), axis=0)
    output = tl.zeros([BLOCK], tl.float32)
    for back in range(num_nodes):
        ancestor = num_nodes - 1 - back
        # Only ancestors: the decay from another branch has no bound.
        if tl.load(ancestor_mask + node * num_nodes + ancestor) != 0:
            step = tl.load(dt + ancestor * num_heads + head).to(tl.float32)
            inputs_at = (ancestor * num_heads + head) * head_dim + rows
            value = tl.load(x + inputs_at, inside, 0.0).to(tl.float32)
            direction_at = (ancestor * num_groups + group) * state_dim + columns
            direction = tl.load(B + direction_at, real, 0.0).to(tl.float32)
            score = tl.sum(reader * direction, axis=0)
            output += tl.exp(log_decay) * score * step * value
            log_decay += step * rate
    cells = (head * head_dim + rows)[:, None] * state_dim + columns[None, :]
    state = tl.load(committed + cells, inside[:, None] & real[None, :], 0.0)
    output += tl.exp(log_decay) * tl.sum(state * reader[None, :], axis=1)
    own_at = (tl.load(node_rows + node) * num_heads + head) * head_dim + rows
    own = tl.load(x + own_at, inside, 0.0).to(tl.float32)
    output += tl.load(D + head).to(tl.float32) * own
    tl.store(y + (node * num_heads + head) * head_dim + rows, output, inside)


@triton.jit
def _commit_sums_kernel(
    x,
    dt,
    A,
    B,
    committed,
    layer_stride,
    path_length,
    num_heads,
    num_groups,
    head_dim,
    state_dim,
    BLOCK: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
):
    """Moves some rows of one head's state of one layer along the path."""
    layer, head = tl.program_id(0), tl.program_id(1)
    rows = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, BLOCK_STATE)
    inside, real = rows < head_dim, columns < state_dim
    cells = (head * head_dim + rows)[:, None] * state_dim + columns[None, :]
    valid = inside[:, None] & real[None, :]
    group = head * num_groups // num_heads
    rate = tl.load(A + layer * num_heads + head).to(tl.float32)
    committed += layer.to(tl.int64) * layer_stride
    state = tl.load(committed + cells, valid, 0.0)
    for index in range(path_length):
        row = layer * path_length + index
        step = tl.load(dt + row * num_heads + head).to(tl.float32)
        inputs_at = (row * num_heads + head) * head_dim + rows
        value = tl.load(x + inputs_at, inside, 0.0).to(tl.float32)
        direction_at = (row * num_groups + group) * state_dim + columns
        direction = tl.load(B + direction_at, real, 0.0).to(tl.float32)
        state = tl.exp(step * rate) * state + (step * value)[:, None] * direction[None, :]
    tl.store(committed + cells, state, valid)


def scan(
    x: Float[Tensor, "*batch tokens heads head_dim"],
    dt: Float[Tensor, "*batch tokens heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "*batch tokens groups state_dim"],
    C: Float[Tensor, "*batch tokens groups state_dim"],
    D: Float[Tensor, " heads"],
    state: Float[Tensor, "*batch heads head_dim state_dim"],
) -> tuple[
    Float[Tensor, "*batch tokens heads head_dim"],
    Float[Tensor, "*batch heads head_dim state_dim"],
]:
    """Returns the outputs of a text and the state after it; differentiable."""
    return with_gradient_of(reference.scan, _scan, x, dt, A, B, C, D, state)


def _scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    num_tokens, num_heads, head_dim = x.shape[-3:]
    num_groups, state_dim = B.shape[-2:]
    last = state.clone(memory_format=torch.contiguous_format)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _scan_kernel[(x.shape[:-3].numel(), num_heads, triton.cdiv(head_dim, BLOCK_ROWS))](
        *(part.contiguous() for part in (x, dt, A, B, C, D)),
        last,
        y,
        num_tokens,
        num_heads,
        num_groups,
        head_dim,
        state_dim,
        CHUNK=CHUNK,
        PRECISION=products.PRECISION,
        BLOCK=BLOCK_ROWS,
        BLOCK_STATE=_block_state(state_dim),
        num_stages=2,  # pyrefly: ignore[unexpected-keyword]
    )
    return y, last


def extend_copies(
    x: Float[Tensor, "trees new heads head_dim"],
    dt: Float[Tensor, "trees new heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "trees new groups state_dim"],
    C: Float[Tensor, "trees new groups state_dim"],
    D: Float[Tensor, " heads"],
    committed: Float[Tensor, "slots heads head_dim state_dim"],
    node_states: Float[Tensor, "slots rows heads head_dim state_dim"],
    new: TreeRows,
) -> Float[Tensor, "trees new heads head_dim"]:
    """Runs the new nodes of some trees, each from its parent's state, which it writes."""
    num_trees, num_new, num_heads, head_dim = x.shape
    num_groups, state_dim = B.shape[-2:]
    assert committed.is_contiguous(), "what all slots hold is not copied"
    assert node_states.is_contiguous(), "states are written in place"
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _extend_copies_kernel[(num_heads, triton.cdiv(head_dim, BLOCK_ROWS), num_trees)](
        *(part.contiguous() for part in (x, dt, A, B, C, D)),
        committed,
        node_states,
        new.slots,
        new.rows.contiguous(),
        new.parents.contiguous(),
        y,
        node_states.shape[1],
        num_new,
        num_heads,
        num_groups,
        head_dim,
        state_dim,
        BLOCK=BLOCK_ROWS,
        BLOCK_STATE=_block_state(state_dim),
    )
    return y


def extend_sums(
    x: Float[Tensor, "slots rows heads head_dim"],
    dt: Float[Tensor, "slots rows heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "slots rows groups state_dim"],
    C: Float[Tensor, "trees new groups state_dim"],
    D: Float[Tensor, " heads"],
    committed: Float[Tensor, "slots heads head_dim state_dim"],
    new: TreeRows,
) -> Float[Tensor, "trees new heads head_dim"]:
    """Runs the new nodes of some trees from the inputs of their ancestors; no state is made."""
    num_trees, num_new, num_nodes = new.ancestor_mask.shape
    num_rows, num_heads, head_dim = x.shape[1:]
    num_groups, state_dim = B.shape[-2:]
    for part in (x, dt, B, committed):
        assert part.is_contiguous(), "what all slots hold is not copied"
    y = x.new_empty(num_trees, num_new, num_heads, head_dim)
    _extend_sums_kernel[(num_trees * num_new, num_heads, triton.cdiv(head_dim, BLOCK_ROWS))](
        x,
        dt,
        A.contiguous(),
        B,
        C.contiguous(),
        D.contiguous(),
        committed,
        new.slots,
        new.rows.contiguous(),
        new.ancestor_mask.contiguous().view(torch.int8),
        y,
        num_rows,
        num_nodes,
        num_new,
        num_heads,
        num_groups,
        head_dim,
        state_dim,
        BLOCK=BLOCK_ROWS,
        BLOCK_STATE=_block_state(state_dim),
    )
    return y


def commit_sums(
    x: Float[Tensor, "layers path heads head_dim"],
    dt: Float[Tensor, "layers path heads"],
    A: Float[Tensor, "layers heads"],
    B: Float[Tensor, "layers path groups state_dim"],
    committed: Float[Tensor, "layers heads head_dim state_dim"],
) -> None:
    """Moves the committed states of all layers along a path, step by step, in place."""
    num_layers, path_length, num_heads, head_dim = x.shape
    assert committed[0].is_contiguous(), "states are written in place"
    _commit_sums_kernel[(num_layers, num_heads, triton.cdiv(head_dim, BLOCK_ROWS))](
        *(part.contiguous() for part in (x, dt, A, B)),
        committed,
        committed.stride(0),
        path_length,
        num_heads,
        B.shape[2],
        head_dim,
        B.shape[3],
        BLOCK=BLOCK_ROWS,
        BLOCK_STATE=_block_state(B.shape[3]),
    )


def _block_state(state_dim: int) -> int:
    return max(triton.next_power_of_2(state_dim), 16)
