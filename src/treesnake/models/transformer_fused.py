"""The decoder's layers in few kernels, for passes over a few nodes on a CUDA device.

A layer is seven kernels, of which four read weights: norm and projection; norms of heads, turns and
the write to the cache; attention over parts of the rows; their combination; projection and sum;
norm, both projections of the MLP and its gate; projection and sum.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.triton.attention import CacheNodes, HeadForm, attend, place
from treesnake.kernels.triton.fused_linear import add_linear, normed_gate, normed_linear
from treesnake.models.transformer_cache import KvBank
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.transformer_inputs import Inputs
from treesnake.models.transformer_layers import DecoderTensors


def can_fuse(config: TransformerConfig, num_tree_nodes: int) -> bool:
    """Tells whether the layers of a decoder are fused for trees of so many nodes."""
    windows = [window for window in config.windows if window is not None]
    return (
        config.norms_inputs
        and not config.norms_outputs
        and config.activation == "silu"
        and config.query_key_norm != "projection"
        and all(window >= num_tree_nodes for window in windows)
    )


def run_fused(
    config: TransformerConfig,
    tensors: DecoderTensors,
    inputs: Inputs,
    num_rows: int,
    bank: KvBank,
) -> Float[Tensor, "slots_nodes vocab"]:
    """Runs nodes of trees through all layers; returns their logits.

    It works on tensors alone and never waits for the device.

    Args:
        config: of a decoder whose layers are fused; see `can_fuse`.
        tensors: its weights.
        inputs: what the pass is told.
        num_rows: how many rows of each slot are read.
        bank: the keys and values of all texts.
    """
    positions = inputs.positions
    turns = tensors.turns(positions.flatten(), config)
    hidden = tensors.embed(inputs.token_ids.flatten())
    epsilon = config.epsilon
    for index, layer in enumerate(tensors.layers):
        nodes = CacheNodes(
            bank.keys[index],
            bank.values[index],
            inputs.slots,
            inputs.lengths,
            positions,
            inputs.mask,
            inputs.cache_rows,
            num_rows,
        )
        form = HeadForm(
            config.num_heads,
            layer.query_norm,
            layer.key_norm,
            epsilon,
            turns[index],
        )
        bias = layer.qkv_bias if config.qkv_bias else None
        qkv = normed_linear(hidden, layer.attention_norm, epsilon, layer.qkv, bias)
        queries = place(qkv, form, nodes)
        attended = attend(queries, nodes, config.attention_scale, config.windows[index])
        hidden = add_linear(hidden, attended.flatten(1), layer.attention_out)
        gated = normed_gate(hidden, layer.mlp_norm, epsilon, layer.gate_up)
        hidden = add_linear(hidden, gated, layer.down)
    return normed_linear(hidden, tensors.final_norm, epsilon, tensors.head).to(torch.float32)
