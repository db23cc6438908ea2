"""The tensors of a decoder of the Llama kind, read from a state dict of Hugging Face names."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.models.transformer_config import TransformerConfig

EMBEDDING = "model.embed_tokens.weight"
"""The embedding, which is the output layer as well in a model with tied embeddings."""

HEAD = "lm_head.weight"
"""The output layer of a model whose embeddings are not tied."""


@dataclass(frozen=True, eq=False)
class LayerTensors:
    """One layer, its matrices fused and in the dtype of the checkpoint.

    `qkv` has the heads of queries, keys and values below each other, `gate_up` the gate above up.
    Absent norms of queries and keys have width 0, absent biases are zeros.
    """

    attention_norm: Float[Tensor, " hidden"]
    qkv: Float[Tensor, "qkv_width hidden"]
    qkv_bias: Float[Tensor, " qkv_width"]
    query_norm: Float[Tensor, " query_norm_width"]
    key_norm: Float[Tensor, " key_norm_width"]
    attention_out: Float[Tensor, "hidden query_width"]
    mlp_norm: Float[Tensor, " hidden"]
    gate_up: Float[Tensor, "twice_mlp hidden"]
    down: Float[Tensor, "hidden mlp"]


def read_layer(
    tensors: Mapping[str, Tensor], config: TransformerConfig, layer: int
) -> LayerTensors:
    """Reads one layer; nothing of it is kept elsewhere."""
    prefix = f"model.layers.{layer}."
    norms = ("input_layernorm", "post_attention_layernorm")
    if config.norms_outputs:
        norms = ("post_attention_layernorm", "post_feedforward_layernorm")
    nothing = torch.empty(0)
    qkv = _read_fused(tensors, prefix + "self_attn.", "qkv_proj", ("q_proj", "k_proj", "v_proj"))
    return LayerTensors(
        attention_norm=tensors[f"{prefix}{norms[0]}.weight"],
        qkv=qkv,
        qkv_bias=_read_qkv_bias(tensors, prefix + "self_attn.", len(qkv)),
        query_norm=tensors.get(f"{prefix}self_attn.q_norm.weight", nothing),
        key_norm=tensors.get(f"{prefix}self_attn.k_norm.weight", nothing),
        attention_out=tensors[f"{prefix}self_attn.o_proj.weight"],
        mlp_norm=tensors[f"{prefix}{norms[1]}.weight"],
        gate_up=_read_fused(tensors, prefix + "mlp.", "gate_up_proj", ("gate_proj", "up_proj")),
        down=tensors[f"{prefix}mlp.down_proj.weight"],
    )


def restrict_output(
    tensors: Mapping[str, Tensor], config: TransformerConfig, token_ids: Int[Tensor, " kept"]
) -> tuple[Mapping[str, Tensor], TransformerConfig]:
    """Returns tensors and sizes of the network with only these tokens' rows of its output layer."""
    head = tensors[EMBEDDING if config.tied_embeddings else HEAD]
    restricted = replace(config, output_size=len(token_ids), tied_embeddings=False)
    return {**tensors, HEAD: head[token_ids]}, restricted


def read_final_norm(tensors: Mapping[str, Tensor]) -> Float[Tensor, " hidden"]:
    """Reads the norm before the output layer."""
    return tensors["model.norm.weight"]


def _read_fused(
    tensors: Mapping[str, Tensor], prefix: str, fused: str, parts: tuple[str, ...]
) -> Float[Tensor, "outputs inputs"]:
    if f"{prefix}{fused}.weight" in tensors:
        return tensors[f"{prefix}{fused}.weight"]
    return torch.cat([tensors[f"{prefix}{part}.weight"] for part in parts])


def _read_qkv_bias(
    tensors: Mapping[str, Tensor], prefix: str, width: int
) -> Float[Tensor, " qkv_width"]:
    if f"{prefix}q_proj.bias" not in tensors:
        return torch.zeros(width)
    return torch.cat([tensors[f"{prefix}{part}_proj.bias"] for part in ("q", "k", "v")])
