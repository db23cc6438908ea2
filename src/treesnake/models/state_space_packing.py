"""The weights of Mamba and Mamba-2 as the compiled networks read them.

Consecutive parts of what a matrix gives, such as the gate and what is convolved, are each padded
with zeros to whole vectors, and biases, convolutions and A with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.kernels.cpu.linear import padded
from treesnake.kernels.cpu.mamba import MambaWeights
from treesnake.kernels.cpu.mamba2 import Mamba2Weights
from treesnake.kernels.cpu.packing import ROWS_AT_ONCE
from treesnake.kernels.cpu.state_space import StackWeights
from treesnake.kernels.matrices import GROUPED_BITS
from treesnake.models.mamba import Mamba
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space import StateSpaceNetwork, check_vocabulary
from treesnake.models.weight_stack import WeightStack, new_stack


@dataclass(frozen=True)
class PackedNetwork:
    """What kernels read, the stacks of matrices behind it, and the tokens that have logits."""

    weights: Any
    stacks: Mapping[str, WeightStack]
    num_outputs: int

    @property
    def arrays(self) -> list[np.ndarray]:
        """All arrays that kernels read."""
        parts = (*self.weights.stack, *self.weights[1:])
        return [part for part in parts if isinstance(part, np.ndarray)]

    def with_output(self, weight: Float[Tensor, "outputs hidden"]) -> "PackedNetwork":
        """Returns the network with another output layer, which is rounded as its own is."""
        head = _stack([weight], self.stacks["head"].dtype)
        stack = self.weights.stack._replace(head=head.array[0])
        weights = self.weights._replace(stack=stack)
        return PackedNetwork(weights, {**self.stacks, "head": head}, self.num_outputs)


@dataclass(frozen=True, eq=False)
class Ends:
    """What is before and behind the layers of a network.

    Attributes:
        embedding: of all tokens.
        final_norm: the norm before the output layer.
        head: the output layer, which may be the embedding.
        num_outputs: the number of tokens that have logits.
    """

    embedding: WeightStack
    final_norm: np.ndarray
    head: WeightStack
    num_outputs: int


@dataclass(frozen=True, eq=False)
class Layers:
    """The mixers of a network, and the norm before each of them."""

    mixers: Sequence[Any]
    norms: Sequence[Float[Tensor, " hidden"]]

    @classmethod
    def of(cls, network: StateSpaceNetwork[Any]) -> "Layers":
        """Returns those of a network of nothing else."""
        blocks = network.backbone.blocks
        return cls([block.mixer for block in blocks], [block.norm.weight for block in blocks])


def pack_mamba(
    network: Mamba, dtype: torch.dtype, draft_vocab: Int[Tensor, " kept"] | None
) -> PackedNetwork:
    """Packs a Mamba; its output layer has rows for `draft_vocab` alone, if there is one."""
    config = network.config
    channels, rank, state_dim = config.num_channels, config.rank, config.state_dim
    layers, ends = Layers.of(network), _pack_ends(network, dtype, draft_vocab)
    mixers = layers.mixers
    # Step sizes are exponents of decays, and these two matrices are small: no integers for them.
    fine = torch.float16 if dtype in GROUPED_BITS else dtype
    x_proj = [_pad_parts(mixer.x_proj.weight, [rank, state_dim, state_dim]) for mixer in mixers]
    width = x_proj[0].shape[0]
    dt_proj = []
    for mixer in mixers:
        weight = _pad_parts(mixer.dt_proj.weight, [channels])
        dt_proj.append(torch.cat([weight, weight.new_zeros(len(weight), width - rank)], dim=1))
    matrices = _pack_matrices(layers, ends, dtype, projected=[channels] * 2)
    matrices |= {"x_proj": _stack(x_proj, fine), "dt_proj": _stack(dt_proj, fine)}
    stack = _pack_stack(
        layers,
        ends,
        matrices,
        projected=[channels] * 2,
        convolved=[channels],
        A=_vectors(
            [_pad_parts(_pad_parts(mixer.rates, [channels]).T, [state_dim]).T for mixer in mixers]
        ),
        D=_biases([mixer.D for mixer in mixers], [channels]),
        dt_bias=_biases([mixer.dt_proj.bias for mixer in mixers], [channels]),
    )
    x_stack, dt_stack = matrices["x_proj"].array, matrices["dt_proj"].array
    weights = MambaWeights(stack=stack, x_proj=x_stack, dt_proj=dt_stack)
    return PackedNetwork(weights, matrices, ends.num_outputs)


def pack_mamba2(
    network: Mamba2, dtype: torch.dtype, draft_vocab: Int[Tensor, " kept"] | None
) -> PackedNetwork:
    """Packs a Mamba-2; its output layer has rows for `draft_vocab` alone, if there is one."""
    ends = _pack_ends(network, dtype, draft_vocab)
    return pack_mamba2_layers(network.config, Layers.of(network), ends, dtype)


def pack_mamba2_layers(
    config: Mamba2Config,
    layers: Layers,
    ends: Ends,
    dtype: torch.dtype,
    gated_epsilon: float | None = None,
) -> PackedNetwork:
    """Packs layers of Mamba-2 between ends that are packed already.

    Args:
        config: the sizes.
        layers: mixers and norms.
        ends: embedding and output layer.
        dtype: what matrices are rounded to.
        gated_epsilon: that of the norms behind the gates, if it is not that of the others.
    """
    channels, heads = config.num_channels, config.num_heads
    convolved = [channels, *[config.state_dim] * (2 * config.num_groups)]
    projected = [channels, *convolved, heads]
    mixers = layers.mixers
    matrices = _pack_matrices(layers, ends, dtype, projected)
    stack = _pack_stack(
        layers,
        ends,
        matrices,
        projected=projected,
        convolved=convolved,
        A=_vectors([mixer.rates for mixer in mixers]),
        D=_biases([mixer.D.repeat_interleave(config.head_dim) for mixer in mixers], [channels]),
        dt_bias=_biases([mixer.dt_bias for mixer in mixers], [heads]),
    )
    weights = Mamba2Weights(
        stack=stack,
        gated_norm=_vectors([mixer.norm.weight for mixer in mixers]),
        gated_epsilon=np.float32(config.norm_eps if gated_epsilon is None else gated_epsilon),
        dt_limits=np.array(config.time_step_limit, np.float32),
    )
    return PackedNetwork(weights, matrices, ends.num_outputs)


def _pack_matrices(
    layers: Layers, ends: Ends, dtype: torch.dtype, projected: Sequence[int]
) -> dict[str, WeightStack]:
    """Packs the matrices that both architectures have.

    `projected` are the widths of the parts of what the first projection gives.
    """
    in_proj = [_pad_parts(mixer.in_proj.weight, projected) for mixer in layers.mixers]
    return {
        "embedding": ends.embedding,
        "in_proj": _stack(in_proj, dtype),
        "out_proj": _stack([mixer.out_proj.weight for mixer in layers.mixers], dtype),
        "head": ends.head,
    }


def _pack_stack(
    layers: Layers,
    ends: Ends,
    matrices: Mapping[str, WeightStack],
    *,
    projected: Sequence[int],
    convolved: Sequence[int],
    A: np.ndarray,
    D: np.ndarray,
    dt_bias: np.ndarray,
) -> StackWeights:
    """Returns what both architectures have.

    `projected` and `convolved` are the widths of the parts of what the first projection gives and
    of what is convolved.
    """
    mixers, hidden = layers.mixers, len(layers.norms[0])
    return StackWeights(
        embedding=ends.embedding.array[0],
        norm=_vectors(layers.norms),
        in_proj=matrices["in_proj"].array,
        in_proj_bias=_biases([mixer.in_proj.bias for mixer in mixers], projected),
        conv=_vectors([_conv_weight(mixer.conv1d, convolved) for mixer in mixers]),
        conv_bias=_vectors([_conv_bias(mixer.conv1d, convolved) for mixer in mixers]),
        A=A,
        D=D,
        dt_bias=dt_bias,
        out_proj=matrices["out_proj"].array,
        out_proj_bias=_biases([mixer.out_proj.bias for mixer in mixers], [hidden]),
        final_norm=ends.final_norm,
        head=ends.head.array[0],
    )


def _pack_ends(
    network: StateSpaceNetwork[Any], dtype: torch.dtype, draft_vocab: Int[Tensor, " kept"] | None
) -> Ends:
    embedding = _stack([network.backbone.embeddings.weight], dtype)
    return Ends(
        embedding=embedding,
        final_norm=_vectors([network.backbone.norm_f.weight])[0],
        head=_pack_head(network, embedding, dtype, draft_vocab),
        num_outputs=network.config.vocab_size if draft_vocab is None else len(draft_vocab),
    )


def _pack_head(
    network: StateSpaceNetwork[Any],
    embedding: WeightStack,
    dtype: torch.dtype,
    draft_vocab: Int[Tensor, " kept"] | None,
) -> WeightStack:
    """Packs the output layer, which is the embedding's own memory if they are tied and whole."""
    output = network.lm_head.weight
    if draft_vocab is not None:
        check_vocabulary(draft_vocab, network.config.vocab_size)
        output = output[draft_vocab]
    elif network.config.tie_embeddings:
        return embedding
    return _stack([output], dtype)


def _stack(matrices: Sequence[Float[Tensor, "outputs inputs"]], dtype: torch.dtype) -> WeightStack:
    outputs, inputs = matrices[0].shape
    stack = new_stack(len(matrices), outputs, inputs, dtype)
    for layer, matrix in enumerate(matrices):
        for begin in range(0, outputs, ROWS_AT_ONCE):
            stack.write(layer, matrix[begin : begin + ROWS_AT_ONCE].detach().cpu(), begin)
    return stack


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
