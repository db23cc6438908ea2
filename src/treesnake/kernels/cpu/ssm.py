"""The selective state space of Mamba-1, compiled, on tensors.

Functions are those of `treesnake.kernels.reference.ssm`; the kernels are in `ssm_rows`.
"""

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from treesnake.kernels.cpu.conv import padded_array, unpadded, write_back
from treesnake.kernels.cpu.jit import entry_point
from treesnake.kernels.cpu.ssm_rows import (
    REPLAYED_CHANNELS,
    Selection,
    run_path,
    run_rows,
    run_sums,
)
from treesnake.kernels.cpu.ssm_scan import scan
from treesnake.kernels.cpu.steps import block_size
from treesnake.kernels.cpu.team import TEAM, finish_unit, next_unit, wait

__all__ = ["commit_sums", "extend_copies", "extend_sums", "scan"]


@entry_point
def _extend_copies(selection, committed, states, parents):
    end, num_rows = selection.rates.shape[0], selection.dt.shape[0]
    run_rows(selection, num_rows, committed, states, parents, 0, end)


@entry_point
def _extend_sums(selection, num_rows, committed, parents, needed, scratch):
    end = selection.rates.shape[0]
    run_sums(selection, num_rows, committed, parents, needed, scratch, 0, end)


@entry_point
def _commit_sums(barrier, rates, dt, x, B, states):
    num_layers, num_channels = states.shape[0], states.shape[1]
    block = block_size(num_channels, barrier)
    num_blocks = (num_channels + block - 1) // block
    unit = next_unit(barrier, 0)
    while unit < num_layers * num_blocks:
        layer, number = divmod(unit, num_blocks)
        begin = number * block
        end = min(begin + block, num_channels)
        run_path(rates[layer], dt[layer], x[layer], B[layer], states[layer], begin, end)
        unit = finish_unit(barrier, 0)
    wait(barrier, 0, num_layers * num_blocks)


def extend_copies(
    x: Float[Tensor, "new channels"],
    dt: Float[Tensor, "new channels"],
    A: Float[Tensor, "channels state_dim"],
    B: Float[Tensor, "new state_dim"],
    C: Float[Tensor, "new state_dim"],
    D: Float[Tensor, " channels"],
    committed: Float[Tensor, "channels state_dim"],
    node_states: Float[Tensor, "nodes channels state_dim"],
    parents: Int[Tensor, " nodes"],
) -> Float[Tensor, "new channels"]:
    """Runs the newest nodes of a tree, each from its parent's state, which it writes."""
    selection = _selection(x, dt, A, B, C)
    states = padded_array(node_states, axes=2)
    _extend_copies(selection, padded_array(committed[None], axes=2), states, parents.numpy())
    write_back(states, node_states)
    return (unpadded(selection.y, x.shape) + D * x).to(x.dtype)


def extend_sums(
    x: Float[Tensor, "nodes channels"],
    dt: Float[Tensor, "nodes channels"],
    A: Float[Tensor, "channels state_dim"],
    B: Float[Tensor, "nodes state_dim"],
    C: Float[Tensor, "new state_dim"],
    D: Float[Tensor, " channels"],
    committed: Float[Tensor, "channels state_dim"],
    ancestor_mask: Bool[Tensor, " nodes nodes"],
) -> Float[Tensor, "new channels"]:
    """Runs the newest nodes of a tree from the inputs of their ancestors; no state is made."""
    num_new, mask = C.shape[0], ancestor_mask.numpy()
    selection = _selection(x, dt, A, B, C)
    state_dim = selection.rates.shape[1]
    scratch = np.empty((len(mask) + 1, REPLAYED_CHANNELS, state_dim), np.float32)
    needed = mask[-num_new:].any(axis=0)
    state = padded_array(committed[None], axes=2)
    _extend_sums(selection, num_new, state, parents_of(mask), needed, scratch)
    newest = x[-num_new:]
    return (unpadded(selection.y, newest.shape) + D * newest).to(x.dtype)


def commit_sums(
    x: Float[Tensor, "layers path channels"],
    dt: Float[Tensor, "layers path channels"],
    A: Float[Tensor, "layers channels state_dim"],
    B: Float[Tensor, "layers path state_dim"],
    committed: Float[Tensor, "layers channels state_dim"],
) -> None:
    """Moves the committed states of all layers along a path, step by step, in place."""
    states = padded_array(committed, axes=2)
    inputs = (padded_array(A, axes=2), padded_array(dt), padded_array(x), padded_array(B))
    TEAM.run(_commit_sums, 1, *inputs, states)
    write_back(states, committed)


def parents_of(ancestor_mask: np.ndarray) -> np.ndarray:
    """Returns each node's parent, its last strict ancestor; -1 if there is none."""
    strict = ancestor_mask & ~np.eye(len(ancestor_mask), dtype=bool)
    last = strict.shape[1] - 1 - strict[:, ::-1].argmax(axis=1)
    return np.where(strict.any(axis=1), last, -1)


def _selection(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Selection:
    rates = padded_array(A, axes=2)
    y = np.empty((C.shape[0] + 1, rates.shape[0]), np.float32)
    readers = padded_array(F.pad(C, (0, 0, 0, 1)))
    return Selection(rates, padded_array(dt), padded_array(x), padded_array(B), readers, 0, y)
