"""The shape of a decoder of the Llama kind, and which models are of that kind."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PretrainedConfig

from treesnake.errors import UnsupportedModelError
from treesnake.models.hf_families import context_length

QueryKeyNorm = Literal["none", "head", "projection"]

Activation = Literal["silu", "gelu_tanh"]

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""What gates of MLPs compute, by its names in configs."""


@dataclass(frozen=True)
class TransformerConfig:
    """Everything but the weights. One value a layer where layers differ.

    Attributes:
        attends: whether a layer has attention; in a hybrid some have a mixer in its place.
        head_dim: the width of a head; `num_heads * head_dim` may differ from `hidden_size`.
        attention_scale: what scores are multiplied with.
        windows: how many positions a layer sees, the own one included, or None for all.
        rotations: which of `inverse_frequencies` a layer turns queries and keys with, or None.
        inverse_frequencies: for each way of turning, the radians a position of each pair of a
            head's first values; of as many pairs in all of them.
        embedding_scale: what embeddings are multiplied with.
        norms_inputs: there are norms before attention and MLP.
        norms_outputs: there are norms after attention and MLP.
        norms_around_one: a file has the weights of norms less 1.
        activation: of the gates of MLPs.
        fused_projections: a file has queries, keys and values in one matrix, and gate and up.
        qkv_bias: queries, keys and values have biases.
        query_key_norm: what of queries and keys is normed: nothing, each head or all heads at once.
        tied_embeddings: the output layer is the embedding.
        output_size: the tokens that there are logits for; fewer than `vocab_size` in a drafter
            with a draft vocabulary.
    """

    vocab_size: int
    hidden_size: int
    mlp_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    epsilon: float
    attention_scale: float
    attends: tuple[bool, ...]
    windows: tuple[int | None, ...]
    rotations: tuple[int | None, ...]
    inverse_frequencies: tuple[tuple[float, ...], ...]
    embedding_scale: float
    norms_inputs: bool
    norms_outputs: bool
    norms_around_one: bool
    activation: Activation
    fused_projections: bool
    qkv_bias: bool
    query_key_norm: QueryKeyNorm
    tied_embeddings: bool
    output_size: int

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The numbers of the layers that have attention."""
        return tuple(number for number, attends in enumerate(self.attends) if attends)

    @classmethod
    def from_hf(cls, hf_config: PretrainedConfig) -> "TransformerConfig":
        """Reads the configuration of a transformers model.

        Raises:
            UnsupportedModelError: with `unsupported_reason`, if there is one.
        """
        if reason := unsupported_reason(hf_config):
            raise UnsupportedModelError(reason)
        family = _FAMILIES[hf_config.model_type]
        head_dim, hidden = head_dim_of(hf_config), hf_config.hidden_size
        score_divisor = hf_config.query_pre_attn_scalar if family.states_scores else head_dim
        ropes = _ropes(hf_config)
        return cls(
            vocab_size=hf_config.vocab_size,
            hidden_size=hidden,
            mlp_size=hf_config.intermediate_size,
            num_layers=hf_config.num_hidden_layers,
            num_heads=hf_config.num_attention_heads,
            num_kv_heads=hf_config.num_key_value_heads,
            head_dim=head_dim,
            context_length=context_length(hf_config) or hf_config.max_position_embeddings,
            epsilon=hf_config.rms_norm_eps,
            attention_scale=score_divisor**-0.5,
            attends=(True,) * hf_config.num_hidden_layers,
            windows=_windows(hf_config),
            rotations=_rotations(hf_config, list(ropes)),
            inverse_frequencies=tuple(
                inverse_frequencies(rope, hf_config.max_position_embeddings, head_dim)
                for rope in ropes.values()
            ),
            embedding_scale=hidden**0.5 if family.scales_embeddings else 1.0,
            norms_inputs=family.norms_inputs,
            norms_outputs=family.norms_outputs,
            norms_around_one=family.norms_around_one,
            activation=ACTIVATIONS[getattr(hf_config, family.activation_key)],
            fused_projections=family.fused_projections,
            qkv_bias=family.qkv_bias,
            query_key_norm=family.query_key_norm,
            tied_embeddings=hf_config.tie_word_embeddings,
            output_size=hf_config.vocab_size,
        )


@dataclass(frozen=True)
class _Family:
    """What configs of a family do not say, and the keys that only some families read."""

    norms_inputs: bool = True
    norms_outputs: bool = False
    norms_around_one: bool = False
    scales_embeddings: bool = False
    states_scores: bool = False
    fused_projections: bool = False
    qkv_bias: bool = False
    query_key_norm: QueryKeyNorm = "none"
    has_windows: bool = False
    activation_key: str = "hidden_act"


_FAMILIES = {
    "gemma3_text": _Family(
        norms_outputs=True,
        norms_around_one=True,
        scales_embeddings=True,
        states_scores=True,
        query_key_norm="head",
        has_windows=True,
        activation_key="hidden_activation",
    ),
    "llama": _Family(),
    "mistral": _Family(has_windows=True),
    "olmo2": _Family(norms_inputs=False, norms_outputs=True, query_key_norm="projection"),
    "phi3": _Family(fused_projections=True, has_windows=True),
    "qwen2": _Family(qkv_bias=True, has_windows=True),
    "qwen3": _Family(query_key_norm="head", has_windows=True),
    "smollm3": _Family(has_windows=True),
}

ALL_LAYERS = "all layers"
"""The kind of layer in configs whose layers turn queries and keys in one way."""


def unsupported_reason(hf_config: PretrainedConfig) -> str | None:
    """Says why our own decoder cannot run a model, or None if it can.

    Models that it refuses run through transformers.
    """
    if hf_config.model_type not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        return f"the native engine knows the families {known}, this is {hf_config.model_type!r}"
    activation = getattr(hf_config, _FAMILIES[hf_config.model_type].activation_key)
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        return f"the native engine computes gates of {known}, this model has {activation!r}"
    for option in ("attention_bias", "mlp_bias"):
        if getattr(hf_config, option, False):
            return f"the native engine has no biases but qwen2's, this model sets {option}"
    for option in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(hf_config, option, None) is not None:
            return f"the native engine does not cap scores or logits, this model sets {option}"
    if getattr(hf_config, "use_bidirectional_attention", False):
        return "this model looks ahead in the text (use_bidirectional_attention)"
    return _obstacle_in(list(_ropes(hf_config).values()))


def _obstacle_in(ropes: Sequence[Mapping[str, Any]]) -> str | None:
    known = ", ".join(_ROPE_SCALINGS)
    for rope in ropes:
        rope_type = rope.get("rope_type", "default")
        if rope_type not in _ROPE_SCALINGS:
            return (
                f"the native engine computes rotary positions of types {known}, not {rope_type!r}"
            )
    if len({rope.get("partial_rotary_factor", 1.0) for rope in ropes}) > 1:
        return "the native engine turns as many pairs of a head in all layers"
    return None


def head_dim_of(hf_config: PretrainedConfig) -> int:
    """Returns the width of a head of attention."""
    head_dim = getattr(hf_config, "head_dim", None)
    return head_dim or hf_config.hidden_size // hf_config.num_attention_heads


def _windows(hf_config: PretrainedConfig) -> tuple[int | None, ...]:
    window = getattr(hf_config, "sliding_window", None)
    if not _FAMILIES[hf_config.model_type].has_windows:
        window = None  # the key says nothing to a family whose layers never look at it
    kinds = getattr(hf_config, "layer_types", None)
    if kinds is None:
        return (window,) * hf_config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _ropes(hf_config: PretrainedConfig) -> dict[str, Mapping[str, Any]]:
    """Returns the rotary parameters of each kind of layer that there is."""
    rope = hf_config.rope_parameters
    kinds = getattr(hf_config, "layer_types", None) or ()
    if not kinds or kinds[0] not in rope:
        return {ALL_LAYERS: rope}
    return {kind: rope.get(kind) or {} for kind in sorted(set(kinds))}


def _rotations(hf_config: PretrainedConfig, rotary_kinds: list[str]) -> tuple[int | None, ...]:
    num_layers = hf_config.num_hidden_layers
    rotates = getattr(hf_config, "no_rope_layers", None) or (1,) * num_layers  # 1: it does rotate
    kinds = (ALL_LAYERS,) * num_layers
    if rotary_kinds != [ALL_LAYERS]:
        kinds = hf_config.layer_types
    return tuple(
        rotary_kinds.index(kind) if turns else None
        for kind, turns in zip(kinds, rotates, strict=True)
    )


def inverse_frequencies(
    rope: Mapping[str, Any], trained_length: int, head_dim: int
) -> tuple[float, ...]:
    """Returns the radians a position of each pair, computed in float32 as models were trained.

    Args:
        rope: the rotary parameters of a config.
        trained_length: positions that the model was trained for, unless the parameters say it.
        head_dim: the width of a head.
    """
    rope = {"original_max_position_embeddings": trained_length, **rope}
    rotary_dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    frequencies = 1.0 / rope["rope_theta"] ** exponents
    scale = _ROPE_SCALINGS[rope.get("rope_type", "default")]
    return tuple(scale(frequencies, rope).tolist())


def _unscaled(frequencies: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    return frequencies


def _scaled_linearly(frequencies: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    return frequencies / rope["factor"]


def _scaled_as_llama3(frequencies: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    """Divides low frequencies, keeps high ones, and blends between (Llama 3.1)."""
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / rope["factor"])


_ROPE_SCALINGS: dict[str, Callable[[torch.Tensor, Mapping[str, Any]], torch.Tensor]] = {
    "default": _unscaled,
    "linear": _scaled_linearly,
    "llama3": _scaled_as_llama3,
}
