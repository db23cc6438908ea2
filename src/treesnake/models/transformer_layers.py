"""The tensors of a decoder of the Llama kind, read from a state dict of Hugging Face names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.errors import LoadError
from treesnake.kernels.matrices import Matrix, in_floats
from treesnake.kernels.reference.norm import rotation
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.weight_gate import Promise, Shape, Tie, admit

EMBEDDING = "model.embed_tokens.weight"
"""The embedding, which is the output layer as well in a model with tied embeddings."""

HEAD = "lm_head.weight"
"""The output layer of a model whose embeddings are not tied."""

FINAL_NORM = "model.norm.weight"

ATTENTION_NORMS = ("attention_norm", "attention_out_norm", "query_norm", "key_norm")
MLP_NORMS = ("mlp_norm", "mlp_out_norm")
"""The norms of a layer, by what they are called here."""


@dataclass(frozen=True, eq=False)
class AttentionMatrices:
    """The matrices of an attention, in the dtype of the checkpoint.

    `qkv` are the heads of queries, keys and values, to be put below each other; a file may have
    them in one matrix.
    """

    qkv: Sequence[Matrix]
    out: Matrix


@dataclass(frozen=True, eq=False)
class MlpMatrices:
    """The matrices of an MLP, in the dtype of the checkpoint.

    `gate_up` are gate and up, to be put below each other; a file may have them in one matrix.
    """

    gate_up: Sequence[Matrix]
    down: Matrix


@dataclass(frozen=True, eq=False)
class AttentionVectors:
    """The vectors of an attention. Absent norms have width 0, absent biases are zeros."""

    attention_norm: Float[Tensor, " input_norm_width"]
    attention_out_norm: Float[Tensor, " output_norm_width"]
    qkv_bias: Float[Tensor, " qkv_width"]
    query_norm: Float[Tensor, " query_norm_width"]
    key_norm: Float[Tensor, " key_norm_width"]


@dataclass(frozen=True, eq=False)
class MlpVectors:
    """The norms before and after an MLP. One that is absent has width 0."""

    mlp_norm: Float[Tensor, " input_norm_width"]
    mlp_out_norm: Float[Tensor, " output_norm_width"]


def read_attention(tensors: Mapping[str, Tensor], layer: int) -> AttentionMatrices:
    """Reads the matrices of an attention; nothing of them is kept elsewhere."""
    prefix = f"model.layers.{layer}.self_attn."
    return AttentionMatrices(
        qkv=_read_parts(tensors, prefix, "qkv_proj", ("q_proj", "k_proj", "v_proj")),
        out=tensors[f"{prefix}o_proj.weight"],
    )


def read_mlp(tensors: Mapping[str, Tensor], layer: int) -> MlpMatrices:
    """Reads the matrices of an MLP; nothing of them is kept elsewhere."""
    prefix = f"model.layers.{layer}.mlp."
    return MlpMatrices(
        gate_up=_read_parts(tensors, prefix, "gate_up_proj", ("gate_proj", "up_proj")),
        down=tensors[f"{prefix}down_proj.weight"],
    )


def read_attention_vectors(
    tensors: Mapping[str, Tensor], config: TransformerConfig, layer: int
) -> AttentionVectors:
    """Reads the vectors of an attention."""
    prefix = f"model.layers.{layer}.self_attn."
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return AttentionVectors(
        qkv_bias=_read_qkv_bias(tensors, prefix, width),
        **_read_norms(tensors, config, layer, ATTENTION_NORMS),
    )


def read_mlp_vectors(
    tensors: Mapping[str, Tensor], config: TransformerConfig, layer: int
) -> MlpVectors:
    """Reads the vectors of an MLP."""
    return MlpVectors(**_read_norms(tensors, config, layer, MLP_NORMS))


@dataclass(frozen=True, eq=False)
class LayerTensors(MlpVectors, AttentionVectors):
    """One layer in floats, `qkv` and `gate_up` in one matrix each."""

    qkv: Float[Tensor, "qkv_width hidden"]
    attention_out: Float[Tensor, "hidden query_width"]
    gate_up: Float[Tensor, "twice_mlp hidden"]
    down: Float[Tensor, "hidden mlp"]


def read_layer(
    tensors: Mapping[str, Tensor], config: TransformerConfig, layer: int
) -> LayerTensors:
    """Reads one layer; nothing of it is kept elsewhere."""
    attention, mlp = read_attention(tensors, layer), read_mlp(tensors, layer)
    return LayerTensors(
        **vars(read_attention_vectors(tensors, config, layer)),
        **vars(read_mlp_vectors(tensors, config, layer)),
        qkv=_joined(attention.qkv),
        attention_out=in_floats(attention.out),
        gate_up=_joined(mlp.gate_up),
        down=in_floats(mlp.down),
    )


@dataclass(frozen=True, eq=False)
class DecoderTensors:
    """A whole decoder in floats, on the device that runs it.

    `embedding_scale` is None where it is 1. `inverse_frequencies` are those of each way in which
    layers turn queries and keys.
    """

    layers: Sequence[LayerTensors]
    embedding: Float[Tensor, "vocab hidden"]
    embedding_scale: Float[Tensor, ""] | None
    head: Float[Tensor, "outputs hidden"]
    final_norm: Float[Tensor, " hidden"]
    inverse_frequencies: Sequence[Float[Tensor, " pairs"]]

    @classmethod
    def read(
        cls,
        tensors: Mapping[str, Tensor],
        config: TransformerConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "DecoderTensors":
        """Reads each tensor once and rounds it to `dtype`, but for norms around one."""
        norm_dtype = torch.float32 if config.norms_around_one else dtype

        def placed(layer: LayerTensors) -> LayerTensors:
            return LayerTensors(
                **{
                    name: tensor.to(device, norm_dtype if name.endswith("_norm") else dtype)
                    for name, tensor in vars(layer).items()
                }
            )

        embedding, scale = tensors[EMBEDDING].to(device, dtype), config.embedding_scale
        return cls(
            layers=[placed(read_layer(tensors, config, n)) for n in range(config.num_layers)],
            embedding=embedding,
            embedding_scale=None if scale == 1 else embedding.new_tensor(scale),
            head=embedding if config.tied_embeddings else tensors[HEAD].to(device, dtype),
            final_norm=read_final_norm(tensors, config).to(device, norm_dtype),
            inverse_frequencies=[
                torch.tensor(each, device=device) for each in config.inverse_frequencies
            ],
        )

    def embed(self, token_ids: Int[Tensor, " nodes"]) -> Float[Tensor, "nodes hidden"]:
        """Looks up the embeddings of tokens and scales them."""
        embedded = F.embedding(token_ids, self.embedding)
        return embedded if self.embedding_scale is None else embedded * self.embedding_scale

    def turns(
        self, positions: Int[Tensor, " nodes"], config: TransformerConfig
    ) -> list[tuple[Tensor, Tensor] | None]:
        """Returns what each layer turns queries and keys by, or None if it does not."""
        ways = [rotation(positions, each) for each in self.inverse_frequencies]
        return [None if way is None else ways[way] for way in config.rotations]

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights in memory."""
        layers = sum(tensor.nbytes for layer in self.layers for tensor in vars(layer).values())
        head = 0 if self.head is self.embedding else self.head.nbytes
        return layers + self.embedding.nbytes + head + self.final_norm.nbytes


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
        **{f"{name}.weight": (width,) for name, width in _norms(config).values()},
        **_projections("self_attn", hidden, attended, "qkv", config),
        **_projections("mlp", hidden, gated, "gate_up", config),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.down_proj.weight": (hidden, config.mlp_size),
    }
    if config.qkv_bias:
        layer |= {f"self_attn.{part}_proj.bias": (width,) for part, width in attended.items()}
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
    check_heads(config, where)
    admitted = admit(promised_tensors(config), tensors, where)
    return replace(config, tied_embeddings=admitted.is_tied), admitted.tensors


def check_heads(config: TransformerConfig, where: str) -> None:
    """Refuses heads that do not share keys and values equally.

    Raises:
        LoadError: with the numbers.
    """
    if config.num_heads % config.num_kv_heads:
        raise LoadError(
            f"the config of {where} makes no sense: {config.num_heads} heads cannot share "
            f"{config.num_kv_heads} heads of keys and values equally"
        )


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


def read_final_norm(
    tensors: Mapping[str, Tensor], config: TransformerConfig
) -> Float[Tensor, " hidden"]:
    """Reads the norm before the output layer."""
    return _norm_weight(tensors[FINAL_NORM], config)


def _norms(config: TransformerConfig) -> dict[str, tuple[str, int]]:
    """Returns what each norm of a layer is called in files, and its width; none that is absent."""
    hidden, head_dim = config.hidden_size, config.head_dim
    norms: dict[str, tuple[str, int]] = {}
    if config.norms_inputs:
        after = "pre_feedforward" if config.norms_outputs else "post_attention"
        norms["attention_norm"] = "input_layernorm", hidden
        norms["mlp_norm"] = f"{after}_layernorm", hidden
    if config.norms_outputs:
        norms["attention_out_norm"] = "post_attention_layernorm", hidden
        norms["mlp_out_norm"] = "post_feedforward_layernorm", hidden
    if config.query_key_norm != "none":
        is_of_heads = config.query_key_norm == "head"
        queries, keys = (1, 1) if is_of_heads else (config.num_heads, config.num_kv_heads)
        norms["query_norm"] = "self_attn.q_norm", queries * head_dim
        norms["key_norm"] = "self_attn.k_norm", keys * head_dim
    return norms


def _read_norms(
    tensors: Mapping[str, Tensor], config: TransformerConfig, layer: int, wanted: Sequence[str]
) -> dict[str, Float[Tensor, " norm_width"]]:
    """Reads norms of a layer; those that are absent have width 0."""
    names = {name: own for name, (own, _) in _norms(config).items()}
    return {
        name: _norm_weight(tensors[f"model.layers.{layer}.{names[name]}.weight"], config)
        if name in names
        else torch.empty(0)
        for name in wanted
    }


def _norm_weight(
    stored: Float[Tensor, " norm_width"], config: TransformerConfig
) -> Float[Tensor, " norm_width"]:
    """Returns what a norm multiplies with."""
    return stored.float() + 1 if config.norms_around_one else stored


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
