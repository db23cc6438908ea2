"""The selective state space of Mamba-1: over a text and over a token tree.

Each channel has a state of `state_dim` numbers, and every one of these decays at its own rate:

    h_t = exp(dt_t A) h_p(t) + dt_t B_t x_t        y_t = C_t . h_t + D x_t

where p(t) is the token before t, or its parent in a tree.

Glossary (paper symbol, variable):
    x       x       input of the recurrence, after the convolution
    Delta   dt      step sizes, positive (after the softplus)
    A       A       rates, negative; exp(dt A) is the decay over a step
    B, C    B, C    directions in which the state is written and read
    D       D       skip connection
    h       state   `committed` before a tree, `node_states` within it

States and decays are float32 whatever the inputs are.
Source: Gu and Dao 2023, Alg. 2; trees by STree (Wu et al. 2025), which keeps states too.
"""

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from treesnake.kernels.tree_rows import TreeRows

SCAN_CHUNK = 32
"""Tokens that are scanned at once; the states within a chunk exist only while it is computed."""


def step(
    x: Float[Tensor, "*batch channels"],
    dt: Float[Tensor, "*batch channels"],
    A: Float[Tensor, "channels state_dim"],
    B: Float[Tensor, "*batch state_dim"],
    C: Float[Tensor, "*batch state_dim"],
    D: Float[Tensor, " channels"],
    state: Float[Tensor, "*batch channels state_dim"],
) -> tuple[Float[Tensor, "*batch channels"], Float[Tensor, "*batch channels state_dim"]]:
    """Returns the output of one token and the state after it: the definition, word for word."""
    dt = dt.float()
    decay = torch.exp(dt[..., None] * A)
    state = decay * state + (dt * x)[..., None] * B[..., None, :].float()
    return _read(state, C, D, x), state


def scan(
    x: Float[Tensor, "*batch tokens channels"],
    dt: Float[Tensor, "*batch tokens channels"],
    A: Float[Tensor, "channels state_dim"],
    B: Float[Tensor, "*batch tokens state_dim"],
    C: Float[Tensor, "*batch tokens state_dim"],
    D: Float[Tensor, " channels"],
    state: Float[Tensor, "*batch channels state_dim"],
) -> tuple[Float[Tensor, "*batch tokens channels"], Float[Tensor, "*batch channels state_dim"]]:
    """Returns the outputs of a text and the state after it; differentiable.

    Within a chunk log2(tokens) rounds of whole-array operations do. For a backward pass the states
    are computed again chunk by chunk, so that memory does not grow with `state_dim` times tokens.
    """
    bounds = [*range(0, x.shape[-2], SCAN_CHUNK), x.shape[-2]]
    outputs = []
    for first, end in pairwise(bounds):
        chunk = (part[..., first:end, :] for part in (x, dt, B, C))
        y, state = checkpoint(_scan_chunk, *chunk, A, D, state, use_reentrant=False)
        outputs.append(y)
    return torch.cat(outputs, dim=-2), state


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
    """Runs the new nodes of some trees, each from its parent's state, level by level.

    `committed` and `node_states` are those of all slots; the new nodes' states are written there.
    """
    outputs = torch.empty_like(x)
    for at in levels(new):
        slots, states = new.slots[at[0]], parent_states(committed, node_states, new, at)
        outputs[at], node_states[slots, new.rows[at]] = step(
            x[at], dt[at], A, B[at], C[at], D, states
        )
    return outputs


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
    """Runs the new nodes of some trees from the inputs of their ancestors; no state is made.

    With g_t the sum of dt along the path of node t:

        y_t = C_t . (exp(g_t A) S + sum over ancestors s of exp((g_t - g_s) A) dt_s B_s x_s) + D x_t

    `x`, `dt`, `B` and `committed` are those of all slots, `C` that of the new nodes.
    """
    slots, nodes = new.slots, slice(new.ancestor_mask.shape[-1])
    # Axes from here on: trees, new, nodes, channels, state_dim.
    visible = new.ancestor_mask[..., None]
    steps = dt[slots, nodes].float()
    passed = torch.where(visible, steps[:, None], 0).cumsum(2)
    elapsed = passed[:, :, -1]
    # Gaps to nodes on other branches mean nothing: mask before the exp.
    gaps = (elapsed[:, :, None] - passed).masked_fill(~visible, float("inf"))
    decays = torch.exp(gaps[..., None] * A)
    written = steps * x[slots, nodes]
    states = torch.einsum("btscn,bsc,bsn->btcn", decays, written, B[slots, nodes].float())
    states = states + torch.exp(elapsed[..., None] * A) * committed[slots, None]
    return _read(states, C, D, x[slots[:, None], new.rows])


def commit_sums(
    x: Float[Tensor, "layers path channels"],
    dt: Float[Tensor, "layers path channels"],
    A: Float[Tensor, "layers channels state_dim"],
    B: Float[Tensor, "layers path state_dim"],
    committed: Float[Tensor, "layers channels state_dim"],
) -> None:
    """Moves the committed states of all layers along a path, in closed form, in place."""
    elapsed = dt.float().cumsum(1)
    total = elapsed[:, -1:]
    decays = torch.exp((total - elapsed)[..., None] * A[:, None])
    written = torch.einsum("lscn,lsc,lsn->lcn", decays, dt.float() * x, B.float())
    committed.mul_(torch.exp(total.mT * A)).add_(written)


Place = tuple[Int[Tensor, " nodes"], Int[Tensor, " nodes"]]
"""New nodes: the tree of each, and its number among the new ones."""


def levels(new: TreeRows) -> list[Place]:
    """Sorts the new nodes of all trees into levels: each one's parents lie in earlier levels."""
    grouped: list[list[tuple[int, int]]] = []
    for tree, nodes in enumerate(zip(new.parents.tolist(), new.rows.tolist(), strict=True)):
        depths: dict[int, int] = {}
        for node, (parent, row) in enumerate(zip(*nodes, strict=True)):
            depth = depths[row] = depths.get(parent, -1) + 1
            if depth == len(grouped):
                grouped.append([])
            grouped[depth].append((tree, node))
    places = [torch.tensor(level, device=new.rows.device) for level in grouped]
    return [(each[:, 0], each[:, 1]) for each in places]


def parent_states(
    committed: Float[Tensor, " slots *state_axes"],
    node_states: Float[Tensor, " slots rows *state_axes"],
    new: TreeRows,
    at: Place,
) -> Float[Tensor, " nodes *state_axes"]:
    """Returns the states that some new nodes start from."""
    slots, parents = new.slots[at[0]], new.parents[at]
    is_root = (parents < 0).reshape(-1, *(1,) * (committed.ndim - 1))
    return torch.where(is_root, committed[slots], node_states[slots, parents])


def _scan_chunk(
    x: Float[Tensor, "*batch tokens channels"],
    dt: Float[Tensor, "*batch tokens channels"],
    B: Float[Tensor, "*batch tokens state_dim"],
    C: Float[Tensor, "*batch tokens state_dim"],
    A: Float[Tensor, "channels state_dim"],
    D: Float[Tensor, " channels"],
    state: Float[Tensor, "*batch channels state_dim"],
) -> tuple[Float[Tensor, "*batch tokens channels"], Float[Tensor, "*batch channels state_dim"]]:
    """Scans by doubling: after round k each token has absorbed the 2^k tokens up to itself.

    Products of decays never exceed 1, so this is stable where a ratio of running products is not.
    """
    dt = dt.float()
    decays = torch.exp(dt[..., None] * A)
    written = (dt * x)[..., None] * B[..., None, :].float()
    tokens = x.shape[-2]
    span = 1
    while span < tokens:
        earlier = (..., slice(None, -span), slice(None), slice(None))
        later = (..., slice(span, None), slice(None), slice(None))
        unchanged = (..., slice(None, span), slice(None), slice(None))
        reached = written[later] + decays[later] * written[earlier]
        written = torch.cat([written[unchanged], reached], dim=-3)
        decays = torch.cat([decays[unchanged], decays[later] * decays[earlier]], dim=-3)
        span *= 2
    states = written + decays * state[..., None, :, :]
    return _read(states, C, D, x), states[..., -1, :, :]


def _read(
    states: Float[Tensor, "*rows channels state_dim"],
    C: Float[Tensor, "*rows state_dim"],
    D: Float[Tensor, " channels"],
    x: Float[Tensor, "*rows channels"],
) -> Float[Tensor, "*rows channels"]:
    y = (states @ C[..., None].float()).squeeze(-1)
    return (y + D * x).to(x.dtype)
