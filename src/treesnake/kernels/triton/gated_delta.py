"""The gated delta rule in Triton: some values of a head's state a program.

Functions are those of `treesnake.kernels.reference.gated_delta`; so are names. A text goes in
token by token with the state in registers. A tree reads the committed state and makes no other:
what a node writes follows from the writes of its ancestors, which are walked up to the root.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

BLOCK_VALUES = 16
"""Values of a head in one program: few, so that small models have programs for every core."""


@triton.jit
def _step_kernel(
    query,
    key,
    value,
    log_decay,
    beta,
    state,
    outputs,
    num_tokens,
    num_heads,
    key_dim,
    value_dim,
    num_decays,
    HAS_OUTPUTS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Moves some columns of a head's state along a text, and writes the outputs."""
    head = tl.program_id(0)
    columns, keys = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_KEYS)
    inside, real = columns < value_dim, keys < key_dim
    decay_at = tl.minimum(keys, num_decays - 1)
    cells = (head * key_dim + keys)[:, None] * value_dim + columns[None, :]
    valid = real[:, None] & inside[None, :]
    current = tl.load(state + cells, valid, 0.0)
    for token in range(num_tokens):
        at = token * num_heads + head
        own_key = tl.load(key + at * key_dim + keys, real, 0.0).to(tl.float32)
        decays = tl.exp(tl.load(log_decay + at * num_decays + decay_at).to(tl.float32))
        current = decays[:, None] * current
        known = tl.sum(current * own_key[:, None], axis=0)
        wanted = tl.load(value + at * value_dim + columns, inside, 0.0).to(tl.float32)
        write = tl.load(beta + at).to(tl.float32) * (wanted - known)
        current += own_key[:, None] * write[None, :]
        if HAS_OUTPUTS:
            reader = tl.load(query + at * key_dim + keys, real, 0.0).to(tl.float32)
            output = tl.sum(current * reader[:, None], axis=0)
            tl.store(outputs + at * value_dim + columns, output, inside)
    tl.store(state + cells, current, valid)


@triton.jit
def _extend_sums_kernel(
    query,
    key,
    value,
    log_decay,
    beta,
    parents,
    committed,
    writes,
    outputs,
    num_nodes,
    num_before,
    num_heads,
    key_dim,
    value_dim,
    num_decays,
    BLOCK_KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Walks the nodes in order, and from each of them up to the root."""
    head = tl.program_id(0)
    columns, keys = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_KEYS)
    inside, real = columns < value_dim, keys < key_dim
    decay_at = tl.minimum(keys, num_decays - 1)
    cells = (head * key_dim + keys)[:, None] * value_dim + columns[None, :]
    state = tl.load(committed + cells, real[:, None] & inside[None, :], 0.0)
    for node in range(num_nodes):
        at = node * num_heads + head
        own_key = tl.load(key + at * key_dim + keys, real, 0.0).to(tl.float32)
        # Earlier nodes were read when they were new, and are walked for their writes alone.
        is_read = real & (node + tl.zeros([BLOCK_KEYS], tl.int32) >= num_before)
        is_written = inside & (node + tl.zeros([BLOCK], tl.int32) >= num_before)
        read_at = (node - num_before) * num_heads + head
        reader = tl.load(query + read_at * key_dim + keys, is_read, 0.0).to(tl.float32)
        log_decays = tl.load(log_decay + at * num_decays + decay_at).to(tl.float32)
        known, read = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        ancestor = tl.load(parents + node)
        while ancestor >= 0:
            above = ancestor * num_heads + head
            passed = tl.exp(log_decays) * tl.load(key + above * key_dim + keys, real, 0.0).to(
                tl.float32
            )
            written = tl.load(writes + above * value_dim + columns, inside, 0.0)
            known += tl.sum(own_key * passed, axis=0) * written
            read += tl.sum(reader * passed, axis=0) * written
            log_decays += tl.load(log_decay + above * num_decays + decay_at).to(tl.float32)
            ancestor = tl.load(parents + ancestor)
        kept = tl.exp(log_decays)[:, None] * state
        known += tl.sum(kept * own_key[:, None], axis=0)
        read += tl.sum(kept * reader[:, None], axis=0)
        wanted = tl.load(value + at * value_dim + columns, inside, 0.0).to(tl.float32)
        write = tl.load(beta + at).to(tl.float32) * (wanted - known)
        tl.store(writes + at * value_dim + columns, write, inside)
        read += tl.sum(own_key * reader, axis=0) * write
        tl.store(outputs + read_at * value_dim + columns, read, is_written)
        # A descendant may be next: what is written must have arrived for all threads.
        tl.debug_barrier()


def scan(
    query: Float[Tensor, "tokens heads key_dim"],
    key: Float[Tensor, "tokens heads key_dim"],
    value: Float[Tensor, "tokens heads value_dim"],
    log_decay: Float[Tensor, "tokens heads decays"],
    beta: Float[Tensor, "tokens heads"],
    state: Float[Tensor, "heads key_dim value_dim"],
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "heads key_dim value_dim"]]:
    """Returns the outputs of a text and the state after it."""
    outputs = torch.empty_like(value, memory_format=torch.contiguous_format)
    return outputs, _moved(query, key, value, log_decay, beta, state, outputs)


def extend_sums(
    query: Float[Tensor, "new heads key_dim"],
    key: Float[Tensor, "nodes heads key_dim"],
    value: Float[Tensor, "nodes heads value_dim"],
    log_decay: Float[Tensor, "nodes heads decays"],
    beta: Float[Tensor, "nodes heads"],
    ancestor_mask: Bool[Tensor, "nodes nodes"],
    committed: Float[Tensor, "heads key_dim value_dim"],
) -> Float[Tensor, "new heads value_dim"]:
    """Runs the newest nodes of a tree from the inputs of all nodes; no state is made."""
    num_nodes, num_heads, key_dim = key.shape
    value_dim = value.shape[2]
    outputs = value.new_empty(len(query), num_heads, value_dim)
    writes = torch.empty(value.shape, dtype=torch.float32, device=value.device)
    _extend_sums_kernel[(num_heads, triton.cdiv(value_dim, BLOCK_VALUES))](
        *(part.contiguous() for part in (query, key, value, log_decay, beta)),
        _parents(ancestor_mask),
        committed.contiguous(),
        writes,
        outputs,
        num_nodes,
        num_nodes - len(query),
        num_heads,
        key_dim,
        value_dim,
        log_decay.shape[2],
        BLOCK_KEYS=triton.next_power_of_2(key_dim),
        BLOCK=BLOCK_VALUES,
    )
    return outputs


def commit_sums(
    key: Float[Tensor, "path heads key_dim"],
    value: Float[Tensor, "path heads value_dim"],
    log_decay: Float[Tensor, "path heads decays"],
    beta: Float[Tensor, "path heads"],
    committed: Float[Tensor, "heads key_dim value_dim"],
) -> Float[Tensor, "heads key_dim value_dim"]:
    """Returns the committed state moved along a path, step by step."""
    return _moved(None, key, value, log_decay, beta, committed, None)


def _moved(
    query: Tensor | None,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    outputs: Tensor | None,
) -> Float[Tensor, "heads key_dim value_dim"]:
    num_tokens, num_heads, key_dim = key.shape
    value_dim = value.shape[2]
    moved = state.clone(memory_format=torch.contiguous_format)
    key = key.contiguous()
    _step_kernel[(num_heads, triton.cdiv(value_dim, BLOCK_VALUES))](
        key if query is None else query.contiguous(),
        key,
        *(part.contiguous() for part in (value, log_decay, beta)),
        moved,
        moved if outputs is None else outputs,
        num_tokens,
        num_heads,
        key_dim,
        value_dim,
        log_decay.shape[2],
        HAS_OUTPUTS=outputs is not None,
        BLOCK_KEYS=triton.next_power_of_2(key_dim),
        BLOCK=BLOCK_VALUES,
    )
    return moved


def _parents(ancestor_mask: Bool[Tensor, "nodes nodes"]) -> Tensor:
    """Returns the parent of each node, the last of its ancestors; -1 for those without."""
    nodes = torch.arange(len(ancestor_mask), device=ancestor_mask.device)
    strict = ancestor_mask & (nodes[None, :] < nodes[:, None])
    return torch.where(strict, nodes, -1).amax(1).to(torch.int32)
