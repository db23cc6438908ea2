"""The selective state space of Mamba-1 in Triton: some channels a program, tokens in order.

Functions are those of `treesnake.kernels.reference.ssm`; so are names. States stay in registers
while a program goes along a text, and are float32.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.tree_rows import TreeRows
from treesnake.kernels.triton.ssm_scan import scan

__all__ = ["commit_sums", "extend_copies", "extend_sums", "scan"]

BLOCK_CHANNELS = 32


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
    rows,
    parents,
    y,
    num_rows,
    num_new,
    num_channels,
    state_dim,
    shared_stride,
    BLOCK: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
):
    """Walks the new nodes of a tree in order; a parent's state is loaded by its row."""
    tree = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, BLOCK_STATE)
    inside, real = channels < num_channels, columns < state_dim
    cells = channels[:, None] * state_dim + columns[None, :]
    valid = inside[:, None] & real[None, :]
    state_size = num_channels * state_dim
    slot = tl.load(slots + tree)
    committed += slot * state_size
    node_states += slot * num_rows * state_size
    rates = tl.load(A + cells, valid, 0.0)
    skip = tl.load(D + channels, inside, 0.0).to(tl.float32)
    for node in range(tree * num_new, (tree + 1) * num_new):
        parent = tl.load(parents + node)
        if parent < 0:
            old = tl.load(committed + cells, valid, 0.0)
        else:
            old = tl.load(node_states + parent * state_size + cells, valid, 0.0)
        step = tl.load(dt + node * num_channels + channels, inside, 0.0).to(tl.float32)
        value = tl.load(x + node * num_channels + channels, inside, 0.0).to(tl.float32)
        shared_at = node * shared_stride + columns
        direction = tl.load(B + shared_at, real, 0.0).to(tl.float32)
        reader = tl.load(C + shared_at, real, 0.0).to(tl.float32)
        decay = tl.exp(step[:, None] * rates)
        state = decay * old + (step * value)[:, None] * direction[None, :]
        tl.store(node_states + tl.load(rows + node) * state_size + cells, state, valid)
        output = tl.sum(state * reader[None, :], axis=1) + skip * value
        tl.store(y + node * num_channels + channels, output, inside)
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
    rows,
    ancestor_mask,
    y,
    num_rows,
    num_nodes,
    num_new,
    num_channels,
    state_dim,
    BLOCK: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
):
    """Sums over one new node's ancestors, from itself up to the root."""
    node = tl.program_id(0)
    slot = tl.load(slots + node // num_new)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, BLOCK_STATE)
    inside, real = channels < num_channels, columns < state_dim
    cells = channels[:, None] * state_dim + columns[None, :]
    valid = inside[:, None] & real[None, :]
    x += slot * num_rows * num_channels
    dt += slot * num_rows * num_channels
    B += slot * num_rows * state_dim
    committed += slot * num_channels * state_dim
    rates = tl.load(A + cells, valid, 0.0)
    elapsed = tl.zeros([BLOCK], tl.float32)
    state = tl.zeros([BLOCK, BLOCK_STATE], tl.float32)
    for back in range(num_nodes):
        ancestor = num_nodes - 1 - back
        # Only ancestors: the decay from another branch has no bound.
        if tl.load(ancestor_mask + node * num_nodes + ancestor) != 0:
            step = tl.load(dt + ancestor * num_channels + channels, inside, 0.0).to(tl.float32)
            value = tl.load(x + ancestor * num_channels + channels, inside, 0.0).to(tl.float32)
            direction = tl.load(B + ancestor * state_dim + columns, real, 0.0).to(tl.float32)
            written = (step * value)[:, None] * direction[None, :]
            state += tl.exp(elapsed[:, None] * rates) * written
            elapsed += step
    state += tl.exp(elapsed[:, None] * rates) * tl.load(committed + cells, valid, 0.0)
    reader = tl.load(C + node * state_dim + columns, real, 0.0).to(tl.float32)
    own_row = tl.load(rows + node)
    own = tl.load(x + own_row * num_channels + channels, inside, 0.0).to(tl.float32)
    skip = tl.load(D + channels, inside, 0.0).to(tl.float32)
    output = tl.sum(state * reader[None, :], axis=1) + skip * own
    tl.store(y + node * num_channels + channels, output, inside)


@triton.jit
def _commit_sums_kernel(
    x,
    dt,
    A,
    B,
    committed,
    layer_stride,
    path_length,
    num_channels,
    state_dim,
    BLOCK: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
):
    """Moves some channels of one layer's state along the path."""
    layer = tl.program_id(0)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, BLOCK_STATE)
    inside, real = channels < num_channels, columns < state_dim
    cells = channels[:, None] * state_dim + columns[None, :]
    valid = inside[:, None] & real[None, :]
    rates = tl.load(A + layer * num_channels * state_dim + cells, valid, 0.0)
    committed += layer.to(tl.int64) * layer_stride
    state = tl.load(committed + cells, valid, 0.0)
    for index in range(path_length):
        row = layer * path_length + index
        step = tl.load(dt + row * num_channels + channels, inside, 0.0).to(tl.float32)
        value = tl.load(x + row * num_channels + channels, inside, 0.0).to(tl.float32)
        direction = tl.load(B + row * state_dim + columns, real, 0.0).to(tl.float32)
        written = (step * value)[:, None] * direction[None, :]
        state = tl.exp(step[:, None] * rates) * state + written
    tl.store(committed + cells, state, valid)


def extend_copies(
    x: Float[Tensor, "trees new channels"],
    dt: Float[Tensor, "trees new channels"],
    A: Float[Tensor, "channels state_dim"],
    B: Float[Tensor, "trees new state_dim"],
    C: Float[Tensor, "trees new state_dim"],
    D: Float[Tensor, " channels"],
    committed: Float[Tensor, "slots channels state_dim"],
    node_states: Float[Tensor, "slots rows channels state_dim"],
    new: TreeRows,
) -> Float[Tensor, "trees new channels"]:
    """Runs the new nodes of some trees, each from its parent's state, which it writes."""
    num_trees, num_new, num_channels = x.shape
    assert committed.is_contiguous(), "what all slots hold is not copied"
    assert node_states.is_contiguous(), "states are written in place"
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    B, C = _of_one_stride(B, C)
    _extend_copies_kernel[(triton.cdiv(num_channels, BLOCK_CHANNELS), num_trees)](
        *(part.contiguous() for part in (x, dt, A)),
        B,
        C,
        D.contiguous(),
        committed,
        node_states,
        new.slots,
        new.rows.contiguous(),
        new.parents.contiguous(),
        y,
        node_states.shape[1],
        num_new,
        num_channels,
        A.shape[1],
        B.stride(1),
        BLOCK=BLOCK_CHANNELS,
        BLOCK_STATE=triton.next_power_of_2(A.shape[1]),
    )
    return y


def _of_one_stride(
    B: Float[Tensor, "trees new state_dim"], C: Float[Tensor, "trees new state_dim"]
) -> tuple[Float[Tensor, "trees new state_dim"], Float[Tensor, "trees new state_dim"]]:
    """Returns them as they are if they are parts of the same longer rows, else copies."""
    num_new, stride = B.shape[1], B.stride(1)
    are_rows = all(part.stride() == (num_new * stride, stride, 1) for part in (B, C))
    return (B, C) if are_rows else (B.contiguous(), C.contiguous())


def extend_sums(
    x: Float[Tensor, "slots rows channels"],
    dt: Float[Tensor, "slots rows channels"],
    A: Float[Tensor, "channels state_dim"],
    B: Float[Tensor, "slots rows state_dim"],
    C: Float[Tensor, "trees new state_dim"],
    D: Float[Tensor, " channels"],
    committed: Float[Tensor, "slots channels state_dim"],
    new: TreeRows,
) -> Float[Tensor, "trees new channels"]:
    """Runs the new nodes of some trees from the inputs of their ancestors; no state is made."""
    num_trees, num_new, num_nodes = new.ancestor_mask.shape
    num_rows, num_channels = x.shape[1:]
    for part in (x, dt, B, committed):
        assert part.is_contiguous(), "what all slots hold is not copied"
    y = x.new_empty(num_trees, num_new, num_channels)
    _extend_sums_kernel[(num_trees * num_new, triton.cdiv(num_channels, BLOCK_CHANNELS))](
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
        num_channels,
        A.shape[1],
        BLOCK=BLOCK_CHANNELS,
        BLOCK_STATE=triton.next_power_of_2(A.shape[1]),
    )
    return y


def commit_sums(
    x: Float[Tensor, "layers path channels"],
    dt: Float[Tensor, "layers path channels"],
    A: Float[Tensor, "layers channels state_dim"],
    B: Float[Tensor, "layers path state_dim"],
    committed: Float[Tensor, "layers channels state_dim"],
) -> None:
    """Moves the committed states of all layers along a path, step by step, in place."""
    num_layers, path_length, num_channels = x.shape
    assert committed[0].is_contiguous(), "states are written in place"
    _commit_sums_kernel[(num_layers, triton.cdiv(num_channels, BLOCK_CHANNELS))](
        *(part.contiguous() for part in (x, dt, A, B)),
        committed,
        committed.stride(0),
        path_length,
        num_channels,
        A.shape[2],
        BLOCK=BLOCK_CHANNELS,
        BLOCK_STATE=triton.next_power_of_2(A.shape[2]),
    )
