"""The shape of a decoder of attention and Mamba-2 layers, and which models are of that kind."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from treesnake.models.hf_families import context_length
from treesnake.models.mamba2 import Mamba2Config
from treesnake.models.transformer_config import (
    TransformerConfig,
    head_dim_of,
    inverse_frequencies,
)

FAMILY = "granitemoehybrid"
"""The family whose models without experts are of this kind, by `model_type`."""

ATTENTION, MIXER = "full_attention", "linear_attention"
"""Kinds of layers, as transformers calls them."""

UNLIMITED = (0.0, float("inf"))
"""The limit of step sizes that limits nothing."""


@dataclass(frozen=True)
class HybridConfig:
    """Everything but the weights.

    The residual stream is divided by the model's residual multiplier. So branches are added to it
    as they are; epsilons of norms and the scale of embeddings make up for it.

    Attributes:
        decoder: all but the mixers.
        mixer: the mixers.
        gated_epsilon: that of the norms behind a mixer's gates.
        logits_divisor: what logits are divided by.
    """

    decoder: TransformerConfig
    mixer: Mamba2Config
    gated_epsilon: float
    logits_divisor: float

    @classmethod
    def from_hf(cls, hf_config: PretrainedConfig) -> "HybridConfig":
        """Reads the configuration of a transformers model that `hybrid_obstacle` has passed."""
        multiplier = float(hf_config.residual_multiplier)
        epsilon = hf_config.rms_norm_eps / multiplier**2
        embedding_scale = float(hf_config.embedding_multiplier) / multiplier
        return cls(
            decoder=_read_decoder(hf_config, epsilon, embedding_scale),
            mixer=_read_mixer(hf_config, epsilon),
            gated_epsilon=hf_config.rms_norm_eps,
            logits_divisor=float(hf_config.logits_scaling),
        )


def is_hybrid(hf_config: PretrainedConfig) -> bool:
    """Tells whether a model is of the family."""
    return hf_config.model_type == FAMILY


def hybrid_obstacle(hf_config: PretrainedConfig) -> str | None:
    """Says why our own engine cannot run a model of the family, or None if it can."""
    if hf_config.num_local_experts:
        return "the native engine has no experts"
    if {*hf_config.layer_types} != {ATTENTION, MIXER}:
        return "its layers should be of two kinds, attention and Mamba-2"
    if hf_config.hidden_act not in ("silu", "swish"):
        return f"the native engine computes SiLU gates, this model has {hf_config.hidden_act!r}"
    if hf_config.attention_bias:
        return "this model sets attention_bias, which the native engine knows of qwen2 only"
    if tuple(hf_config.time_step_limit or UNLIMITED) != UNLIMITED:
        return "it limits the step sizes of prompts"
    if not (hf_config.residual_multiplier or 0) > 0:
        return f"it multiplies its branches with {hf_config.residual_multiplier}"
    if _rotates(hf_config):
        rope = hf_config.rope_parameters or {}
        is_plain = rope.get("rope_type", "default") == "default"
        if not is_plain or rope.get("partial_rotary_factor", 1) != 1:
            return "the native engine computes the plain rotary positions of hybrids only"
    return None


def _rotates(hf_config: PretrainedConfig) -> bool:
    return hf_config.position_embedding_type == "rope"


def _read_decoder(
    hf_config: PretrainedConfig, epsilon: float, embedding_scale: float
) -> TransformerConfig:
    num_layers, head_dim = hf_config.num_hidden_layers, head_dim_of(hf_config)
    trained_length = hf_config.max_position_embeddings
    ropes = [hf_config.rope_parameters] if _rotates(hf_config) else []
    return TransformerConfig(
        vocab_size=hf_config.vocab_size,
        hidden_size=hf_config.hidden_size,
        mlp_size=hf_config.shared_intermediate_size,
        num_layers=num_layers,
        num_heads=hf_config.num_attention_heads,
        num_kv_heads=hf_config.num_key_value_heads,
        head_dim=head_dim,
        context_length=context_length(hf_config) or hf_config.max_position_embeddings,
        epsilon=epsilon,
        attention_scale=float(hf_config.attention_multiplier),
        attends=tuple(kind == ATTENTION for kind in hf_config.layer_types),
        windows=(None,) * num_layers,
        rotations=(0 if ropes else None,) * num_layers,
        inverse_frequencies=tuple(
            inverse_frequencies(rope, trained_length, head_dim) for rope in ropes
        ),
        embedding_scale=embedding_scale,
        norms_inputs=True,
        norms_outputs=False,
        norms_around_one=False,
        activation="silu",
        fused_projections=False,
        qkv_bias=False,
        query_key_norm="none",
        tied_embeddings=hf_config.tie_word_embeddings,
        output_size=hf_config.vocab_size,
    )


def _read_mixer(hf_config: PretrainedConfig, epsilon: float) -> Mamba2Config:
    return Mamba2Config(
        vocab_size=hf_config.vocab_size,
        hidden_size=hf_config.hidden_size,
        num_layers=sum(kind == MIXER for kind in hf_config.layer_types),
        num_heads=hf_config.mamba_n_heads,
        head_dim=hf_config.mamba_d_head,
        num_groups=hf_config.mamba_n_groups,
        state_dim=hf_config.mamba_d_state,
        conv_width=hf_config.mamba_d_conv,
        use_bias=hf_config.mamba_proj_bias,
        use_conv_bias=hf_config.mamba_conv_bias,
        norm_eps=epsilon,
    )
