"""The weights of Mamba and Mamba-2 as the compiled networks read them.

Consecutive parts of what a matrix gives, such as the gate and what is convolved, are each padded
with zeros to whole vectors, and biases, convolutions and rates with them.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.kernels.cpu import mamba as mamba_kernels
from treesnake.kernels.cpu import mamba2 as mamba2_kernels
from treesnake.kernels.cpu.linear import padded
from treesnake.models.mamba import Mamba, MambaMixer
from treesnake.models.mamba2 import Mamba2, Mamba2Mixer
from treesnake.models.state_space import StateSpaceNetwork, check_vocabulary
from treesnake.models.weight_stack import WeightStack


def pack_mamba(
    network: Mamba, dtype: torch.dtype, draft_vocab: Int[Tensor, " kept"] | None
) -> mamba_kernels.Weights:
    """Packs a Mamba; its output layer has rows for `draft_vocab` alone, if there is one."""
    config = network.config
    channels, rank, state_dim = config.num_channels, config.rank, config.state_dim
    selected = [rank, state_dim, state_dim]
    mixers = [cast("MambaMixer", block.mixer) for block in network.backbone.blocks]
    # Step sizes are exponents of decays, and these two matrices are small: no 8 bits for them.
    fine = torch.float16 if dtype == torch.int8 else dtype
    entering = [_pad_parts(mixer.in_proj.weight, [channels] * 2) for mixer in mixers]
    selecting = [_pad_parts(mixer.x_proj.weight, selected) for mixer in mixers]
    width = selecting[0].shape[0]
    stepping = []
    for mixer in mixers:
        weight = _pad_parts(mixer.dt_proj.weight, [channels])
        stepping.append(torch.cat([weight, weight.new_zeros(len(weight), width - rank)], dim=1))
    return mamba_kernels.Weights(
        **_stacks(network, dtype, draft_vocab),
        **_matrices("enter", entering, dtype),
        enter_bias=_biases([mixer.in_proj.bias for mixer in mixers], [channels] * 2),
        conv=_vectors([_conv_weight(mixer.conv1d, [channels]) for mixer in mixers]),
        conv_bias=_vectors([_conv_bias(mixer.conv1d, [channels]) for mixer in mixers]),
        **_matrices("select", selecting, fine),
        **_matrices("steps", stepping, fine),
        steps_bias=_biases([mixer.dt_proj.bias for mixer in mixers], [channels]),
        rates=_vectors(
            [_pad_parts(_pad_parts(mixer.rates, [channels]).T, [state_dim]).T for mixer in mixers]
        ),
        skip=_biases([mixer.D for mixer in mixers], [channels]),
        **_matrices("leave", [mixer.out_proj.weight for mixer in mixers], dtype),
        leave_bias=_biases([mixer.out_proj.bias for mixer in mixers], [config.hidden_size]),
    )


def pack_mamba2(
    network: Mamba2, dtype: torch.dtype, draft_vocab: Int[Tensor, " kept"] | None
) -> mamba2_kernels.Weights:
    """Packs a Mamba-2; its output layer has rows for `draft_vocab` alone, if there is one."""
    config = network.config
    channels, heads = config.num_channels, config.num_heads
    convolved = [channels, *[config.state_dim] * (2 * config.num_groups)]
    entered = [channels, *convolved, heads]
    mixers = [cast("Mamba2Mixer", block.mixer) for block in network.backbone.blocks]
    entering = [_pad_parts(mixer.in_proj.weight, entered) for mixer in mixers]
    return mamba2_kernels.Weights(
        **_stacks(network, dtype, draft_vocab),
        **_matrices("enter", entering, dtype),
        enter_bias=_biases([mixer.in_proj.bias for mixer in mixers], entered),
        conv=_vectors([_conv_weight(mixer.conv1d, convolved) for mixer in mixers]),
        conv_bias=_vectors([_conv_bias(mixer.conv1d, convolved) for mixer in mixers]),
        steps_bias=_biases([mixer.dt_bias for mixer in mixers], [heads]),
        rates=_vectors([mixer.rates for mixer in mixers]),
        skip=_biases([mixer.D.repeat_interleave(config.head_dim) for mixer in mixers], [channels]),
        gated_norm=_vectors([mixer.norm.weight for mixer in mixers]),
        **_matrices("leave", [mixer.out_proj.weight for mixer in mixers], dtype),
        leave_bias=_biases([mixer.out_proj.bias for mixer in mixers], [config.hidden_size]),
    )


def _stacks(
    network: StateSpaceNetwork[Any], dtype: torch.dtype, draft_vocab: Int[Tensor, " kept"] | None
) -> dict[str, np.ndarray]:
    """Packs what both architectures have outside of their layers, and the norms of layers."""
    output = network.lm_head.weight
    if draft_vocab is not None:
        check_vocabulary(draft_vocab, network.config.vocab_size)
        output = output[draft_vocab]
    embedding = _stack([network.backbone.embeddings.weight], dtype)
    is_shared = network.config.tie_embeddings and draft_vocab is None
    head = embedding if is_shared else _stack([output], dtype)
    return {
        "embedding": embedding.values[0],
        "embedding_scale": embedding.scale[0],
        "norm": _vectors([block.norm.weight for block in network.backbone.blocks]),
        "final_norm": _vectors([network.backbone.norm_f.weight])[0],
        "head": head.values[0],
        "head_scale": head.scale[0],
    }


def _stack(matrices: Sequence[Float[Tensor, "outputs inputs"]], dtype: torch.dtype) -> WeightStack:
    outputs, inputs = matrices[0].shape
    stack = WeightStack(len(matrices), outputs, inputs, dtype)
    for layer, matrix in enumerate(matrices):
        stack.write(layer, matrix.detach().cpu())
    return stack


def _matrices(name: str, matrices: list[Tensor], dtype: torch.dtype) -> dict[str, np.ndarray]:
    stack = _stack(matrices, dtype)
    return {name: stack.values, f"{name}_scale": stack.scale}


def _vectors(tensors: Sequence[Float[Tensor, "*axes"]]) -> np.ndarray:
    return torch.stack([tensor.detach().float().cpu() for tensor in tensors]).numpy().copy()


def _biases(tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> np.ndarray:
    return _vectors(
        [torch.zeros(0) if bias is None else _pad_parts(bias, sizes) for bias in tensors]
    )


def _conv_weight(conv: torch.nn.Conv1d, sizes: Sequence[int]) -> Float[Tensor, "width channels"]:
    return _pad_parts(conv.weight.squeeze(1), sizes).T


def _conv_bias(conv: torch.nn.Conv1d, sizes: Sequence[int]) -> Float[Tensor, " channels"]:
    bias = torch.zeros(sum(sizes)) if conv.bias is None else conv.bias
    return _pad_parts(bias, sizes)


def _pad_parts(rows: Float[Tensor, " rows *axes"], sizes: Sequence[int]) -> Tensor:
    """Pads consecutive parts of the first axis with zeros, each to whole vectors."""
    parts: list[Tensor] = []
    for part in rows.detach().split(list(sizes)):
        parts += [part, part.new_zeros(padded(len(part)) - len(part), *part.shape[1:])]
    return torch.cat(parts)
