"""Layers of Mamba and Mamba-2 in few kernels, for passes over trees on a CUDA device.

A layer of Mamba-2 is four kernels: norm and projection; convolution, step sizes and all that is
kept of a node; the recurrence; gate, norm, projection and sum. One of Mamba has two more, which
project step sizes and directions. Products take factors in the dtype of the weights; everything
between is float32.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.triton import ssd, ssm
from treesnake.kernels.triton.fused_linear import (
    add_gated_linear,
    add_gated_normed_linear,
    linear,
    normed_linear,
    softplus_linear,
)
from treesnake.kernels.triton.select import select, select_dual
from treesnake.models.mamba import MambaMixer
from treesnake.models.mamba2 import Mamba2Mixer
from treesnake.models.state_space import Backbone, Block
from treesnake.models.state_space_inputs import TreeInputs
from treesnake.states.branching import PathSums, StateCopies
from treesnake.states.ssm import SsmBank


def can_fuse(blocks: Sequence[Block], bank: SsmBank) -> bool:
    """Tells whether the layers of a network are fused for texts that branch as in a bank."""
    return all(_can_fuse(block, bank) for block in blocks)


def _can_fuse(block: Block, bank: SsmBank) -> bool:
    mixer = block.mixer
    if not isinstance(mixer, MambaMixer | Mamba2Mixer):
        return False
    if mixer.in_proj.bias is not None or mixer.out_proj.bias is not None:
        return False
    if isinstance(mixer, MambaMixer):
        return type(bank.branching) is StateCopies
    return isinstance(bank.branching, PathSums) and mixer.norm.num_groups == 1


def run_fused(
    backbone: Backbone,
    head: Float[Tensor, "kept hidden"],
    inputs: TreeInputs,
    bank: SsmBank,
) -> Float[Tensor, "trees new kept"]:
    """Runs new nodes of some trees through all layers, without waiting for the device.

    Args:
        backbone: whose layers `can_fuse` says are fused.
        head: rows of the output layer.
        inputs: what the pass is told.
        bank: the memory of the texts.
    """
    blocks = backbone.blocks
    rates = -torch.exp(torch.stack([block.mixer.A_log for block in blocks]).float())
    hidden = backbone.embeddings(inputs.token_ids.flatten()).float()
    for layer, block in enumerate(blocks):
        mixer = block.mixer
        if isinstance(mixer, MambaMixer):
            hidden = _run_mamba(block, mixer, hidden, inputs, bank, layer, rates[layer])
        else:
            assert isinstance(mixer, Mamba2Mixer)
            hidden = _run_mamba2(block, mixer, hidden, inputs, bank, layer, rates[layer])
    logits = normed_linear(hidden, backbone.norm_f.weight, backbone.norm_f.eps, head)
    return logits.unflatten(0, inputs.token_ids.shape)


def _run_mamba(
    block: Block,
    mixer: MambaMixer,
    hidden: Float[Tensor, "trees_new hidden"],
    inputs: TreeInputs,
    bank: SsmBank,
    layer: int,
    A: Float[Tensor, "channels state_dim"],
) -> Float[Tensor, "trees_new hidden"]:
    new, branching = inputs.rows, bank.branching
    assert isinstance(branching, StateCopies)
    projected = normed_linear(hidden, block.norm.weight, block.norm.eps, mixer.in_proj.weight)
    num_channels = len(A)
    convolved = select(
        projected,
        0,
        mixer.conv1d.weight.squeeze(1),
        mixer.conv1d.bias,
        bank.history[layer],
        bank.conv_inputs[layer],
        new,
    )
    chosen = linear(convolved, mixer.x_proj.weight)
    low_rank, B, C = chosen.split(mixer.sizes, dim=1)
    dt = softplus_linear(low_rank, mixer.dt_proj.weight, mixer.dt_proj.bias)
    x, dt, B, C = (part.unflatten(0, new.rows.shape) for part in (convolved, dt, B, C))
    y = ssm.extend_copies(
        x, dt, A, B, C, mixer.D, bank.recurrent[layer], branching.states[layer], new
    )
    gates = projected[:, num_channels:]
    return add_gated_linear(hidden, y.flatten(0, 1), gates, mixer.out_proj.weight)


def _run_mamba2(
    block: Block,
    mixer: Mamba2Mixer,
    hidden: Float[Tensor, "trees_new hidden"],
    inputs: TreeInputs,
    bank: SsmBank,
    layer: int,
    A: Float[Tensor, " heads"],
) -> Float[Tensor, "trees_new hidden"]:
    new, branching = inputs.rows, bank.branching
    assert isinstance(branching, PathSums)
    projected = normed_linear(hidden, block.norm.weight, block.norm.eps, mixer.in_proj.weight)
    num_channels = mixer.out_proj.in_features
    x, dt, B = branching.x[layer], branching.dt[layer], branching.B[layer]
    C = select_dual(
        projected,
        num_channels,
        mixer.conv1d.weight.squeeze(1),
        mixer.conv1d.bias,
        mixer.dt_bias,
        bank.history[layer],
        bank.conv_inputs[layer],
        new,
        (x, B, dt),
    )
    C = C.unflatten(0, new.rows.shape)
    y = ssd.extend_sums(x, dt, A, B, C, mixer.D, bank.recurrent[layer], new)
    return add_gated_normed_linear(
        hidden,
        y.flatten(0, 1).flatten(1),
        projected[:, :num_channels],
        mixer.norm.weight,
        mixer.norm.eps,
        mixer.out_proj.weight,
    )
