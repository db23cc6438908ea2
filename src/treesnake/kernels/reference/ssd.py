"""The state space dual of Mamba-2: over a text in chunks, and over a token tree.

Each head has a state of `head_dim` times `state_dim` numbers that decay together:

    S_t = exp(dt_t A) S_p(t) + dt_t x_t B_t^T       y_t = S_t C_t + D x_t

where p(t) is the token before t, or its parent in a tree. Since the decay is one number, the sums
over earlier tokens are matrix products with weights exp(g_t - g_s), where g_t is the sum of dt A up
to t.

Glossary (paper symbol, variable):
    X       x       input of the recurrence, after the convolution
    Delta   dt      step sizes, positive (after the softplus)
    A       A       rates, negative, one a head; exp(dt A) is the decay over a step
    B, C    B, C    directions in which the state is written and read, shared by a group of heads
    D       D       skip connection
    S       state   `committed` before a tree, `node_states` within it
    L       ancestor_mask (of a tree) or the causal mask (of a text)

States and decays are float32 whatever the inputs are.
Source: Dao and Gu 2024, Listing 1; trees by STree (Wu et al. 2025).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.reference.ssm import levels, parent_states
from treesnake.kernels.tree_rows import TreeRows

CHUNK = 64
"""Tokens whose pairwise weights exist at once."""


def step(
    x: Float[Tensor, "*batch heads head_dim"],
    dt: Float[Tensor, "*batch heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "*batch groups state_dim"],
    C: Float[Tensor, "*batch groups state_dim"],
    D: Float[Tensor, " heads"],
    state: Float[Tensor, "*batch heads head_dim state_dim"],
) -> tuple[
    Float[Tensor, "*batch heads head_dim"],
    Float[Tensor, "*batch heads head_dim state_dim"],
]:
    """Returns the output of one token and the state after it: the definition, word for word."""
    dt = dt.float()
    B, C = _per_head(B, x.shape[-2]), _per_head(C, x.shape[-2])
    decay = torch.exp(dt * A)[..., None, None]
    state = decay * state + (dt[..., None] * x)[..., None] * B[..., None, :]
    y = (state @ C[..., None]).squeeze(-1)
    return (y + D[:, None] * x).to(x.dtype), state


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
    """Returns the outputs of a text and the state after it; differentiable.

    Matrix products within a chunk, and one step of the recurrence from chunk to chunk. A text that
    does not fill its last chunk is padded with steps of size zero, which change nothing.
    """
    num_tokens, num_heads = dt.shape[-2:]
    num_groups = B.shape[-2]
    padding = -num_tokens % CHUNK
    skip = D[:, None] * x
    # Axes from here on: batch, chunks, heads or groups, positions in the chunk, features.
    log_decays = _in_chunks((dt.float() * A)[..., None], padding).squeeze(-1).cumsum(-1)
    inputs = _in_chunks(dt.float()[..., None] * x, padding)
    B, C = _in_chunks(B.float(), padding), _in_chunks(C.float(), padding)

    gaps = log_decays[..., :, None] - log_decays[..., None, :]
    causal_mask = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=x.device).tril()
    scores = (C @ B.mT).repeat_interleave(num_heads // num_groups, dim=-3)
    y = (scores * gaps.masked_fill(~causal_mask, float("-inf")).exp()) @ inputs

    # A group's heads are one long axis here, so that what they share is never repeated.
    until_end = (log_decays[..., -1:] - log_decays).exp()
    written = _grouped((inputs * until_end[..., None]).mT, num_groups) @ B
    written = written.unflatten(-2, (-1, x.shape[-1])).flatten(-4, -3)
    entering, state = _pass_on(written, log_decays[..., -1].exp(), state)
    read = _grouped(entering, num_groups) @ C.mT
    read = read.unflatten(-2, (-1, x.shape[-1])).flatten(-4, -3).mT
    y = y + read * log_decays.exp()[..., None]

    y = y.transpose(-3, -2).flatten(-4, -3)[..., :num_tokens, :, :]
    return (y + skip).to(x.dtype), state


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
    x: Float[Tensor, "slots rows heads head_dim"],
    dt: Float[Tensor, "slots rows heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "slots rows groups state_dim"],
    C: Float[Tensor, "trees new groups state_dim"],
    D: Float[Tensor, " heads"],
    committed: Float[Tensor, "slots heads head_dim state_dim"],
    new: TreeRows,
) -> Float[Tensor, "trees new heads head_dim"]:
    """Runs the new nodes of some trees from the inputs of their ancestors; no state is made.

    With g_t the sum of dt A along the path of node t:

        y_t = exp(g_t) S C_t + sum over ancestors s of exp(g_t - g_s) (C_t . B_s) dt_s x_s + D x_t

    `x`, `dt`, `B` and `committed` are those of all slots, `C` that of the new nodes.
    """
    slots, nodes = new.slots, slice(new.ancestor_mask.shape[-1])
    num_heads = x.shape[2]
    # Axes from here on: trees, new, nodes, heads, features.
    visible = new.ancestor_mask[..., None]
    steps = dt[slots, nodes].float()
    passed = torch.where(visible, (steps * A)[:, None], 0).cumsum(2)
    log_decays = passed[:, :, -1]
    # Gaps to nodes on other branches mean nothing: mask before the exp.
    gaps = (log_decays[:, :, None] - passed).masked_fill(~visible, float("-inf"))
    B, C = _per_head(B[slots, nodes], num_heads), _per_head(C, num_heads)
    weights = torch.einsum("bthn,bshn->btsh", C, B) * gaps.exp()
    y = torch.einsum("btsh,bsh,bshp->bthp", weights, steps, x[slots, nodes].float())
    read = torch.einsum("bthn,bhpn->bthp", C, committed[slots])
    own = x[slots[:, None], new.rows]
    return (y + log_decays.exp()[..., None] * read + D[:, None] * own).to(x.dtype)


def commit_sums(
    x: Float[Tensor, "layers path heads head_dim"],
    dt: Float[Tensor, "layers path heads"],
    A: Float[Tensor, "layers heads"],
    B: Float[Tensor, "layers path groups state_dim"],
    committed: Float[Tensor, "layers heads head_dim state_dim"],
) -> None:
    """Moves the committed states of all layers along a path, in closed form, in place."""
    log_decays = (dt.float() * A[:, None]).cumsum(1)
    total = log_decays[:, -1:]
    inputs = ((total - log_decays).exp() * dt.float())[..., None] * x
    written = torch.einsum("lshp,lshn->lhpn", inputs, _per_head(B, x.shape[2]))
    committed.mul_(total.exp().mT[..., None]).add_(written)


def _per_head(
    directions: Float[Tensor, "*batch groups state_dim"], num_heads: int
) -> Float[Tensor, "*batch heads state_dim"]:
    """Repeats what a group of heads shares, in float32."""
    return directions.float().repeat_interleave(num_heads // directions.shape[-2], dim=-2)


def _in_chunks(
    rows: Float[Tensor, "*batch tokens heads features"], padding: int
) -> Float[Tensor, "*batch chunks heads chunk features"]:
    padded = F.pad(rows, (0, 0, 0, 0, 0, padding))
    return padded.unflatten(-3, (-1, CHUNK)).transpose(-3, -2)


def _grouped(
    rows: Float[Tensor, "*batch heads features columns"], num_groups: int
) -> Float[Tensor, "*batch groups grouped_features columns"]:
    return rows.unflatten(-3, (num_groups, -1)).flatten(-3, -2)


def _pass_on(
    written: Float[Tensor, "*batch chunks heads head_dim state_dim"],
    decays: Float[Tensor, "*batch chunks heads"],
    state: Float[Tensor, "*batch heads head_dim state_dim"],
) -> tuple[
    Float[Tensor, "*batch chunks heads head_dim state_dim"],
    Float[Tensor, "*batch heads head_dim state_dim"],
]:
    """Returns the state that enters each chunk, and the one after the last."""
    entering = []
    for chunk in range(written.shape[-4]):
        entering.append(state)
        decay = decays[..., chunk, :, None, None]
        state = decay * state + written[..., chunk, :, :, :]
    return torch.stack(entering, dim=-4), state
