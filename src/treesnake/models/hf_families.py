"""What a transformers model says about how it attends, and the reasons not to run it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

from treesnake.errors import InvalidInputError, UnsupportedModelError
from treesnake.models.hf_masks import Locality, Span

# fmt: off
VERIFIED_FAMILIES = frozenset({
    "apertus", "arcee", "biogpt", "bitnet", "codegen", "cohere", "cohere2", "cwm", "deepseek_v2",
    "deepseek_v3", "diffllama", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "falcon",
    "flex_olmo", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "glm", "glm4",
    "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe",
    "helium", "hunyuan_v1_dense", "internlm3", "jetmoe", "llama", "llama4_text", "minicpm3",
    "minimax_m2", "ministral", "ministral3", "mistral", "mixtral", "nanochat", "nemotron", "olmo",
    "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2", "vaultgemma", "xglm",
})
# fmt: on
"""Families, by `model_type`, whose trees the tests compare with plain forward passes."""

MASKED_ATTENTION = ("sdpa", "eager")
"""The implementations of attention that add a mask of any pattern to the scores."""

LOCALITIES = {
    "full_attention": Locality.FULL,
    "sliding_attention": Locality.WINDOW,
    "chunked_attention": Locality.CHUNK,
}
"""Kinds of layers, as transformers calls them, that keep the keys and values of each token."""

ROWLESS = "dummy"
"""A layer without attention, or one that looks at the rows of another layer."""

WITHOUT_ATTENTION = ("moe", "mlp")
"""How transformers before 5.23 calls a layer that has none."""

RECURRENT = ("linear_attention", "conv", "hybrid", "hybrid_sliding")
"""Kinds of layers that keep a recurrent state."""

KEEPS_A_STATE = (
    "keeps a recurrent state, which no attention mask can branch; it takes a target for state "
    "space models"
)

BIASED_FAMILIES = ("bloom", "mpt")
"""Families whose attention scores are biased by the distance of rows in the cache (ALiBi)."""

ROW_BOUND_FAMILIES = ("gpt_neo",)
"""Families that make masks of their own out of the order of rows in the cache."""

ROW_COUNTING_FAMILIES = ("llama4_text",)
"""Families whose attention takes the positions of nodes from the number of rows in the cache."""

LENGTH_BOUND_ROPE = ("dynamic", "longrope")
"""Kinds of rotary positions whose frequencies change for the whole text where it becomes long."""


FACTOR_ROPE = ("yarn", "linear")
"""Kinds of rotary positions that a factor stretches to longer texts."""


@dataclass(frozen=True)
class AttentionLayout:
    """What each layer keeps and how far back it looks.

    Attributes:
        has_rows: for each layer whether it keeps rows of keys and values.
        spans: for each of the model's kinds of attention layers, by transformers' name of the kind.
    """

    has_rows: tuple[bool, ...]
    spans: Mapping[str, Span]


def layer_kinds(config: PreTrainedConfig) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the kind of each layer that a cache has, with the options of its part of the cache.

    Transformers before 5.23 has no layers in a cache for the last ones of a model, if those look at
    the rows of others.
    """
    kinds, options = get_layer_types_and_kwargs(config)
    named = (ROWLESS if kind in WITHOUT_ATTENTION else kind for kind in kinds)
    return list(zip(named, options, strict=True))


def read_layout(config: PreTrainedConfig) -> AttentionLayout:
    """Returns the layout of a decoder, from what transformers would make its cache of.

    Raises:
        UnsupportedModelError: if a layer keeps anything but keys and values for each token.
    """
    layers = layer_kinds(config)
    spans: dict[str, Span] = {}
    for index, (kind, option) in enumerate(layers):
        if kind == ROWLESS:
            continue
        if kind not in LOCALITIES:
            raise UnsupportedModelError(_reason_against_layer(config, index, kind))
        span = Span(LOCALITIES[kind], option.get("sliding_window", 0))
        if spans.setdefault(kind, span) != span:
            raise UnsupportedModelError(
                f'layers of {config.model_type} that are all called "{kind}" look back '
                f"{spans[kind].size} positions and {span.size}; one mask cannot say both"
            )
    return AttentionLayout(tuple(kind != ROWLESS for kind, _ in layers), spans)


class LimitedContext(int):
    """A number of positions that is smaller than a reader of the config expects, with the reason.

    As text it says the reason, so that messages and tables do.
    """

    reason: str

    def __new__(cls, length: int, reason: str) -> "LimitedContext":
        """Returns the length with its reason."""
        limited = super().__new__(cls, length)
        limited.reason = reason
        return limited

    def __str__(self) -> str:
        return f"{int(self)} ({self.reason})"


def context_length(config: PreTrainedConfig) -> int | None:
    """Returns the number of positions that a decoder can tell apart, or None if it does not say.

    Rotary positions that are scaled by a fixed factor reach that much further. Those that change
    with the length of the text make what was cached before stale, so such models are run up to the
    length at which the first change would come.
    """
    stated = getattr(config, "max_position_embeddings", None)
    lengths: list[int] = []
    for rope in _rope_parameters(config):
        kind, key = rope.get("rope_type"), "original_max_position_embeddings"
        original = rope.get(key) or getattr(config, key, None)
        if kind in LENGTH_BOUND_ROPE:
            length = min(original or stated or 0, stated or original or 0)
            reason = f"beyond it, rotary positions of type {kind} change for the whole text"
            lengths += [LimitedContext(length, reason)] if length else []
        elif kind in FACTOR_ROPE and stated:
            scaled = int((original or stated) * float(rope.get("factor") or 1))
            lengths.append(max(stated, scaled))
        elif stated:
            lengths.append(stated)
    return min(lengths, default=stated)


def activation_width(config: PreTrainedConfig, num_rows: int) -> int:
    """Returns about how many numbers a token takes for the length of one layer.

    They are its activations, and its row of the mask or, if attention is eager, of the scores.
    """
    widths = []
    for layer in config.per_layer_config:
        inner = getattr(layer, "intermediate_size", None) or 4 * layer.hidden_size
        inner = inner if isinstance(inner, int) else max(inner)
        experts = getattr(layer, "num_experts_per_tok", None) or 1
        heads = getattr(layer, "num_attention_heads", 1)
        heads = heads if layer._attn_implementation == "eager" else 1
        widths.append(6 * layer.hidden_size + 3 * inner * experts + 3 * heads * num_rows)
    return max(widths)


def check_supported(model: "transformers.PreTrainedModel") -> None:
    """Checks what a model with attention says about itself; `hf_probe` checks what it does.

    Raises:
        UnsupportedModelError: with the reason why the model cannot score trees.
        InvalidInputError: if the model is in training mode.
    """
    check_decoder(model)
    config = model.config.get_text_config(decoder=True)
    name = type(model).__name__
    if config.model_type in BIASED_FAMILIES or getattr(config, "alibi", False):
        raise UnsupportedModelError(
            f"{name} takes distances from the order of rows in the cache (ALiBi), where the "
            "branches of a tree lie one behind the other"
        )
    if config.model_type in ROW_BOUND_FAMILIES:
        raise UnsupportedModelError(
            f"{name} makes its local masks from the order of rows in the cache, where the branches "
            "of a tree lie one behind the other"
        )
    if getattr(model, "_is_stateful", False):
        raise UnsupportedModelError(f"{name} {KEEPS_A_STATE}")


def check_decoder(model: "transformers.PreTrainedModel") -> None:
    """Checks that a model is a decoder that reads masks and is ready to run.

    Raises:
        UnsupportedModelError: with the reason why the model cannot score trees.
        InvalidInputError: if the model is in training mode.
    """
    config = model.config.get_text_config(decoder=True)
    name = type(model).__name__
    implementation = config._attn_implementation
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} has an encoder; a target is a decoder alone")
    if not model.can_generate() or model.get_output_embeddings() is None:
        raise UnsupportedModelError(
            f"{name} gives no logits of next tokens; load it with AutoModelForCausalLM"
        )
    if implementation not in MASKED_ATTENTION:
        raise UnsupportedModelError(
            f'{name} attends with "{implementation}", which takes no mask of a tree; load it with '
            'attn_implementation="sdpa" or call model.set_attn_implementation("sdpa")'
        )
    if not getattr(config, "is_causal", True) or getattr(
        config, "use_bidirectional_attention", None
    ) in (True, "all"):
        raise UnsupportedModelError(f"{name} looks ahead in the text, so it cannot continue one")
    if model.training:
        raise InvalidInputError(
            f"{name} is in training mode, where dropout makes its output random; call model.eval()"
        )


def _reason_against_layer(config: PreTrainedConfig, index: int, kind: str) -> str:
    fault = KEEPS_A_STATE if kind in RECURRENT else "keeps more than each token's keys and values"
    return f'layer {index} of {config.model_type} ("{kind}") {fault}'


def _rope_parameters(config: PreTrainedConfig) -> list[Mapping[str, Any]]:
    """Returns the rotary parameters: of all layers, or of each kind of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        return [parameters]
    return [rope for rope in parameters.values() if isinstance(rope, Mapping)]
