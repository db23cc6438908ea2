"""The tensors of a decoder of the Llama kind, read from a state dict of Hugging Face names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.errors import LoadError
from treesnake.kernels.grouped_weight import Matrix, in_floats
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.weight_gate import Promise, Shape, Tie, admit

EMBEDDING = "model.embed_tokens.weight"
"""The embedding, which is the output layer as well in a model with tied embeddings."""

HEAD = "lm_head.weight"
"""The output layer of a model whose embeddings are not tied."""

FINAL_NORM = "model.norm.weight"


@dataclass(frozen=True, eq=False)
class LayerMatrices:
    """The matrices of one layer, in the dtype of the checkpoint.

    `qkv` are the heads of queries, keys and values, to be put below each other, `gate_up` the gate
    and up; a file may have either in one matrix.
    """

    qkv: Sequence[Matrix]
    attention_out: Matrix
    gate_up: Sequence[Matrix]
    down: Matrix


@dataclass(frozen=True, eq=False)
class LayerVectors:
    """The vectors of one layer. Absent norms of queries and keys have width 0.

    Absent biases are zeros.
    """

    attention_norm: Float[Tensor, " hidden"]
    qkv_bias: Float[Tensor, " qkv_width"]
    query_norm: Float[Tensor, " query_norm_width"]
    key_norm: Float[Tensor, " key_norm_width"]
    mlp_norm: Float[Tensor, " hidden"]


def read_matrices(
    tensors: Mapping[str, Tensor], config: TransformerConfig, layer: int
) -> LayerMatrices:
    """Reads the matrices of one layer; nothing of them is kept elsewhere."""
    prefix = f"model.layers.{layer}."
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    return LayerMatrices(
        qkv=_read_parts(tensors, attention, "qkv_proj", ("q_proj", "k_proj", "v_proj")),
        attention_out=tensors[f"{attention}o_proj.weight"],
        gate_up=_read_parts(tensors, mlp, "gate_up_proj", ("gate_proj", "up_proj")),
        down=tensors[f"{mlp}down_proj.weight"],
    )


def read_vectors(
    tensors: Mapping[str, Tensor], config: TransformerConfig, layer: int
) -> LayerVectors:
    """Reads the vectors of one layer."""
    prefix, norms = f"model.layers.{layer}.", _norms(config)
    nothing = torch.empty(0)
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return LayerVectors(
        attention_norm=tensors[f"{prefix}{norms[0]}.weight"],
        qkv_bias=_read_qkv_bias(tensors, prefix + "self_attn.", width),
        query_norm=tensors.get(f"{prefix}self_attn.q_norm.weight", nothing),
        key_norm=tensors.get(f"{prefix}self_attn.k_norm.weight", nothing),
        mlp_norm=tensors[f"{prefix}{norms[1]}.weight"],
    )


@dataclass(frozen=True, eq=False)
class LayerTensors(LayerVectors):
    """One layer in floats, `qkv` and `gate_up` in one matrix each."""

    qkv: Float[Tensor, "qkv_width hidden"]
    attention_out: Float[Tensor, "hidden query_width"]
    gate_up: Float[Tensor, "twice_mlp hidden"]
    down: Float[Tensor, "hidden mlp"]


def read_layer(
    tensors: Mapping[str, Tensor], config: TransformerConfig, layer: int
) -> LayerTensors:
    """Reads one layer; nothing of it is kept elsewhere."""
    matrices = read_matrices(tensors, config, layer)
    return LayerTensors(
        **vars(read_vectors(tensors, config, layer)),
        qkv=_joined(matrices.qkv),
        attention_out=in_floats(matrices.attention_out),
        gate_up=_joined(matrices.gate_up),
        down=in_floats(matrices.down),
    )


def _joined(parts: Sequence[Matrix]) -> Float[Tensor, "outputs inputs"]:
    """Returns matrices below each other, as floats; of one alone its own memory."""
    floats = [in_floats(part) for part in parts]
    return torch.cat(floats) if len(floats) > 1 else floats[0]


def promised_tensors(config: TransformerConfig) -> Promise:
    """Returns the tensors that a network of this config has, by their names in transformers."""
    hidden, head_dim = config.hidden_size, config.head_dim
    shapes: dict[str, Shape] = {
        EMBEDDING: (config.vocab_size, hidden),
        HEAD: (config.output_size, hidden),
        FINAL_NORM: (hidden,),
    }
    queries, keys = config.num_heads * head_dim, config.num_kv_heads * head_dim
    attended = {"q": queries, "k": keys, "v": keys}
    gated = dict.fromkeys(("gate", "up"), config.mlp_size)
    layer: dict[str, Shape] = {
        **{f"{name}.weight": (hidden,) for name in _norms(config)},
        **_projections("self_attn", hidden, attended, "qkv", config),
        **_projections("mlp", hidden, gated, "gate_up", config),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.down_proj.weight": (hidden, config.mlp_size),
    }
    if config.qkv_bias:
        layer |= {f"self_attn.{part}_proj.bias": (width,) for part, width in attended.items()}
    normed = {"none": (), "head": (head_dim, head_dim), "projection": (queries, keys)}
    for part, width in zip("qk", normed[config.query_key_norm], strict=False):
        layer[f"self_attn.{part}_norm.weight"] = (width,)
    for number in range(config.num_layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return Promise(shapes, "model.", Tie(EMBEDDING, HEAD) if config.tied_embeddings else None)


def admit_tensors(
    config: TransformerConfig, tensors: Mapping[str, Tensor], where: str
) -> tuple[TransformerConfig, Mapping[str, Tensor]]:
    """Returns the tensors of a network and its config, which says what is really tied.

    Raises:
        LoadError: if the tensors are not those that the config promises.
    """
    if config.num_heads % config.num_kv_heads:
        raise LoadError(
            f"the config of {where} makes no sense: {config.num_heads} heads cannot share "
            f"{config.num_kv_heads} heads of keys and values equally"
        )
    admitted = admit(promised_tensors(config), tensors, where)
    return replace(config, tied_embeddings=admitted.is_tied), admitted.tensors


def restrict_output(
    tensors: Mapping[str, Tensor], config: TransformerConfig, token_ids: Int[Tensor, " kept"]
) -> tuple[Mapping[str, Tensor], TransformerConfig]:
    """Returns tensors and sizes of the network with only these tokens' rows of its output layer.

    Args:
        tensors: what `admit_tensors` returned, as `config`.
        config: the sizes.
        token_ids: the tokens.
    """
    head = tensors[EMBEDDING if config.tied_embeddings else HEAD]
    restricted = replace(config, output_size=len(token_ids), tied_embeddings=False)
    return {**tensors, HEAD: head[token_ids]}, restricted


def read_final_norm(tensors: Mapping[str, Tensor]) -> Float[Tensor, " hidden"]:
    """Reads the norm before the output layer."""
    return tensors[FINAL_NORM]


def _norms(config: TransformerConfig) -> tuple[str, str]:
    """Returns what the norms of attention and MLP are called."""
    if config.norms_outputs:
        return "post_attention_layernorm", "post_feedforward_layernorm"
    return "input_layernorm", "post_attention_layernorm"


def _projections(
    module: str, hidden: int, widths: Mapping[str, int], fused: str, config: TransformerConfig
) -> dict[str, Shape]:
    """Returns the matrices of a module that read the residual stream."""
    if config.fused_projections:
        widths = {fused: sum(widths.values())}
    return {f"{module}.{part}_proj.weight": (width, hidden) for part, width in widths.items()}


def _read_parts(
    tensors: Mapping[str, Tensor], prefix: str, fused: str, parts: tuple[str, ...]
) -> Sequence[Matrix]:
    names = (fused,) if f"{prefix}{fused}.weight" in tensors else parts
    return [tensors[f"{prefix}{name}.weight"] for name in names]


def _read_qkv_bias(
    tensors: Mapping[str, Tensor], prefix: str, width: int
) -> Float[Tensor, " qkv_width"]:
    if f"{prefix}q_proj.bias" not in tensors:
        return torch.zeros(width)
    return torch.cat([tensors[f"{prefix}{part}_proj.bias"] for part in ("q", "k", "v")])
