"""What a GGUF file says of a model, against the config that was made of it.

Files of the families in `gguf_families` are read here, others by transformers. Either reads what it
has names for and passes over the rest. A key that is passed over may change the model: scaled
positions, a window, a second kind of layer. So each key of an architecture is compared with the
config that came out, or known to change nothing, or the file is refused. Keys of other kinds
(author, licence, how it was quantised) say nothing about what the model computes.
"""

import math
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import transformers
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig

from treesnake.errors import LoadError, reason_of
from treesnake.loading.gguf_families import FAMILIES, ROPE_FACTORS, build_config
from treesnake.models.gguf import GgufFile

END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""The ends of a text, a turn and a message; llama.cpp stops at each of them."""

MAX_SIZE = 2**31 - 1

REQUIRED_KEYS = ("block_count", "embedding_length", "context_length")

WHOLE_NUMBERS = ("_count", "_length", "head_count_kv", "sliding_window")
"""How keys end whose values count something."""

READ_BY_ITS_NAME = re.compile(
    r"block_count|embedding_length|context_length|feed_forward_length|vocab_size"
    r"|attention\.head_count|attention\.head_count_kv"
    r"|attention\.layer_norm_(rms_)?epsilon|shortconv\.l_cache"
)
"""Sizes whose tensors would not fit, if they were read wrongly, and the epsilons of norms."""

CHANGES_NOTHING = re.compile(r"tensor_data_layout|rope\.scaling\.finetuned|name")

SCALES_POSITIONS = re.compile(
    r"rope\.scaling\.(type|factor|original_context_length)|rope\.scale_linear"
)
"""Written into the config here."""

TEXTS = ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")

TOKEN_LISTS: Mapping[str, tuple[type, ...]] = {
    "tokenizer.ggml.tokens": (str,),
    "tokenizer.ggml.merges": (str,),
    "tokenizer.ggml.token_type": (int,),
    "tokenizer.ggml.scores": (int, float),
}


def read_gguf_config(file: GgufFile, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Returns transformers' config of a GGUF file, with the scaling of positions that it states.

    Raises:
        LoadError: if the metadata is broken, of an architecture that nobody here knows, or states
            what would be passed over; or a package is missing that reads such a file.
    """
    _check_types(file)
    architecture = file.metadata["general.architecture"]
    stated = {
        key.removeprefix(f"{architecture}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{architecture}.")
    }
    try:
        if architecture in FAMILIES:
            config = build_config(file, stated)
        else:
            config = _read_by_transformers(file, trust_remote_code)
        _check_sizes(config, file, stated)
        _limit_window(config, stated)
        _scale_positions(config, stated)
        for key, value in stated.items():
            _check_key(key, value, config)
    except LoadError as error:
        raise LoadError(f"{file.path} cannot be used: {error}") from error
    return config


def gguf_end_ids(file: GgufFile) -> frozenset[int]:
    """Returns the tokens after which a model has finished, as llama.cpp takes them."""
    stated = (file.metadata.get(f"tokenizer.ggml.{key}") for key in END_KEYS)
    return frozenset(index for index in stated if index is not None)


def rotary_factors(file: GgufFile) -> Float[Tensor, " pairs"] | None:
    """Returns what the file divides the frequencies of rotary pairs by, if anything.

    Raises:
        LoadError: if these are no factors.
    """
    if ROPE_FACTORS not in file:
        return None
    factors = file[ROPE_FACTORS].float()
    if not bool((factors.isfinite() & (factors > 0)).all()):
        raise LoadError(f"{file.path} holds {ROPE_FACTORS} that are no factors; fetch it again")
    return factors


def scale_rotary_pairs(model: "transformers.PreTrainedModel", file: GgufFile) -> None:
    """Divides the frequencies of a loaded model by the factors that the file holds.

    Raises:
        LoadError: if the model has no frequencies of that number.
    """
    factors = rotary_factors(file)
    if factors is None:
        return
    scaled = 0
    for module in model.modules():
        for name in ("inv_freq", "original_inv_freq"):
            frequencies = getattr(module, name, None)
            if isinstance(frequencies, Tensor) and frequencies.shape == factors.shape:
                setattr(module, name, frequencies / factors.to(frequencies.device))
                scaled += 1
    if not scaled:
        raise foreign_factors(file, model.config.model_type)


def foreign_factors(file: GgufFile, model_type: str) -> LoadError:
    """Returns the error for factors of another number than a model has rotary pairs."""
    return LoadError(
        f"{file.path} holds {ROPE_FACTORS} with {file.tensors[ROPE_FACTORS].num_elements} factors, "
        f"which are not those of a {model_type} model; take a file in safetensors"
    )


def names_in_file(model: "transformers.PreTrainedModel", file: GgufFile) -> Mapping[str, str]:
    """Returns what each tensor that a GGUF file may hold of a model is called in the model.

    It is empty for an architecture that transformers reads by rules instead of names.
    """
    from transformers.integrations.gguf import GGUF_ARCHS  # noqa: PLC0415
    from transformers.modeling_gguf_pytorch_utils import (  # noqa: PLC0415
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    architecture = file.metadata["general.architecture"]
    if architecture in GGUF_ARCHS:  # whose unknown tensors are reported as unexpected
        return {}
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)()
    return get_gguf_hf_weights_map(model, processor)


def check_all_read(names: Mapping[str, str], file: GgufFile) -> None:
    """Refuses a file with tensors that transformers has passed over, such as unknown biases.

    Args:
        names: what `names_in_file` returns.
        file: the file.

    Raises:
        LoadError: naming the first of them.
    """
    unread = sorted(file.entries.keys() - {*names, ROPE_FACTORS})
    if names and unread:
        raise LoadError(
            f"{file.path} holds {len(unread)} tensors that transformers does not read, {unread[0]} "
            f"first: it would run another model of the architecture "
            f"{file.metadata['general.architecture']}; take a file in safetensors"
        )


def _read_by_transformers(file: GgufFile, trust_remote_code: bool) -> PreTrainedConfig:
    missing = [part for part in ("gguf", "accelerate") if find_spec(part) is None]
    if missing:
        raise LoadError(
            f"files of the architecture {file.metadata['general.architecture']!r:.40} need "
            f"{' and '.join(missing)}; install treesnake[gguf]"
        )
    if file.is_split:
        raise LoadError(
            "it is a split model, and transformers, which reads this architecture, reads whole "
            "ones; join the parts: llama-gguf-split --merge FIRST_PART WHOLE.gguf"
        )
    try:
        return transformers.AutoConfig.from_pretrained(
            file.path.parent, gguf_file=file.path.name, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise LoadError(f"transformers cannot read it: {reason_of(error)}") from error


def _check_types(file: GgufFile) -> None:
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    _check_values(file)
    if architecture is None:
        raise LoadError(f"{file.path} does not say of which architecture the model is")
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise LoadError(f"{file.path} holds no model but {kind!r:.40}; name the file of its model")
    missing = [key for key in REQUIRED_KEYS if f"{architecture}.{key}" not in metadata]
    if missing:
        raise LoadError(f"{file.path} lacks {architecture}.{missing[0]}; fetch it again")
    for key, value in metadata.items():
        if key.startswith(f"{architecture}."):
            _check_number(key, value, file)


def _check_values(file: GgufFile) -> None:
    """Checks what is known of the keys that describe a tokenizer."""
    metadata = file.metadata
    for key in TEXTS:
        if not isinstance(metadata.get(key, ""), str):
            raise _wrong(file, key, "no text")
    for key, types in TOKEN_LISTS.items():
        value = metadata.get(key, [])
        if not isinstance(value, list) or not all(type(each) in types for each in value):
            raise _wrong(file, key, "no list of that kind")
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    for key in ("tokenizer.ggml.token_type", "tokenizer.ggml.scores"):
        if key in metadata and len(metadata[key]) != len(tokens):
            raise _wrong(file, key, f"a list of {len(metadata[key])} for {len(tokens)} tokens")
    for key, value in metadata.items():
        is_id = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
        if is_id and not (type(value) is int and 0 <= value < len(tokens)):
            raise _wrong(file, key, f"none of its {len(tokens)} tokens")
    if not isinstance(metadata.get("tokenizer.chat_template", ""), str):
        raise _wrong(file, "tokenizer.chat_template", "no text")


def _check_number(key: str, value: Any, file: GgufFile) -> None:
    """Checks a value of an architecture: sizes are whole, other numbers finite."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, float) and not math.isfinite(each):
            raise _wrong(file, key, "no number")
        if isinstance(each, int) and not -1 <= each <= MAX_SIZE:
            raise _wrong(file, key, f"beyond {MAX_SIZE}")
        if key.endswith(WHOLE_NUMBERS) and type(each) is not int:
            raise _wrong(file, key, "no whole number")
        if key.endswith(("epsilon", "factor")) and not _is_at_least(each, 0):
            raise _wrong(file, key, "no number from 0 on")
        if key.endswith(("freq_base", "freq_base_swa")) and not _is_at_least(each, 1):
            raise _wrong(file, key, "no number from 1 on")
    if key.endswith(REQUIRED_KEYS) and not (type(value) is int and value > 0):
        raise _wrong(file, key, "no whole number above 0")


def _is_at_least(value: Any, least: int) -> bool:
    return type(value) in (int, float) and value >= least


def _wrong(file: GgufFile, key: str, what: str) -> LoadError:
    return LoadError(
        f"{file.path} has {key} = {file.metadata[key]!r:.60}, which is {what}; fetch it again"
    )


def _check_sizes(config: PreTrainedConfig, file: GgufFile, stated: Mapping[str, Any]) -> None:
    """Compares what would be built with what the file holds, before it is built."""
    entry = file.entries.get("token_embd.weight")
    size = config.get_text_config().vocab_size
    shape = (size, stated["embedding_length"])
    if entry is not None and entry.shape != shape:
        raise LoadError(
            f"token_embd.weight has the shape {list(entry.shape)}, its metadata promise "
            f"{list(shape)}; fetch it again"
        )
    blocks = {name.split(".")[1] for name in file if name.startswith("blk.")}
    if blocks and len(blocks) != stated["block_count"]:
        raise LoadError(
            f"it holds {len(blocks)} blocks, its metadata promise {stated['block_count']}; fetch "
            "it again"
        )


def _limit_window(config: PreTrainedConfig, stated: Mapping[str, Any]) -> None:
    """Writes the window that a file states for all layers into a config that has one for all."""
    window = stated.get("attention.sliding_window")
    text_config = config.get_text_config()
    if (
        window
        and hasattr(text_config, "sliding_window")
        and not hasattr(text_config, "layer_types")
    ):
        text_config.sliding_window = window


def _scale_positions(config: PreTrainedConfig, stated: Mapping[str, Any]) -> None:
    """Writes the scaling of positions that a file states into its config."""
    kind = stated.get("rope.scaling.type", "none")
    factor = stated.get("rope.scaling.factor", stated.get("rope.scale_linear", 1.0))
    if "rope.scaling.type" not in stated and factor not in (0, 1):
        kind = "linear"  # what files without a type mean
    if kind == "none" or (kind == "linear" and factor in (0, 1)):
        return
    rope = _full_rope(config)
    if rope is None or kind not in ("linear", "yarn"):
        raise LoadError(
            f"its positions are scaled by {kind!r:.40}, which is not known for a "
            f"{config.model_type} model; take a file in safetensors"
        )
    rope |= {"rope_type": kind, "factor": float(factor)}
    if kind == "yarn":
        length = stated.get("rope.scaling.original_context_length", stated["context_length"])
        rope["original_max_position_embeddings"] = length


def _full_rope(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Returns how positions are rotated, where layers differ those that see all of the text."""
    rope = getattr(config.get_text_config(), "rope_parameters", None)
    if isinstance(rope, dict) and "full_attention" in rope:
        rope = rope["full_attention"]
    return rope if isinstance(rope, dict) else None


def _check_key(key: str, value: Any, config: PreTrainedConfig) -> None:
    if any(each.fullmatch(key) for each in (READ_BY_ITS_NAME, CHANGES_NOTHING, SCALES_POSITIONS)):
        return
    if key not in MEANT_BY:
        raise LoadError(f"it states {key} = {value!r:.60}, which is not known here")
    meant = MEANT_BY[key](config.get_text_config())
    if not all(_equal(each, meant) for each in (value if isinstance(value, list) else [value])):
        raise LoadError(
            f"it states {key} = {value!r:.60}, where a model with {meant!r} would run; "
            "take a file in safetensors"
        )


def _equal(stated: Any, meant: Any) -> bool:
    if stated == meant or not (stated or meant):
        return True
    is_number = all(isinstance(each, int | float) for each in (stated, meant))
    return is_number and math.isclose(stated, meant, rel_tol=1e-5)  # stored as float32


def _head_dim(config: PreTrainedConfig) -> Any:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rotary_dim(config: PreTrainedConfig) -> Any:
    share = (_full_rope(config) or {}).get("partial_rotary_factor", 1.0)
    return int(_head_dim(config) * share)


def _named(*names: str) -> Callable[[PreTrainedConfig], Any]:
    """Returns a reader of the first of some attributes that a config has."""
    return lambda config: next(
        (getattr(config, name) for name in names if hasattr(config, name)), None
    )


def _rope(name: str) -> Callable[[PreTrainedConfig], Any]:
    return lambda config: (_full_rope(config) or {}).get(name)


def _window_period(config: PreTrainedConfig) -> Any:
    kinds = getattr(config, "layer_types", None) or []
    return kinds.index("full_attention") + 1 if "full_attention" in kinds else None


def _local_theta(config: PreTrainedConfig) -> Any:
    rope = getattr(config, "rope_parameters", None) or {}
    return (rope.get("sliding_attention") or {}).get("rope_theta")


MEANT_BY: Mapping[str, Callable[[PreTrainedConfig], Any]] = {
    "rope.dimension_count": _rotary_dim,
    "rope.freq_base": _rope("rope_theta"),
    "rope.freq_base_swa": _local_theta,
    "rope.scaling.attn_factor": lambda config: 1.0,
    "rope.scaling.yarn_log_multiplier": lambda config: 0.0,
    "rope.dimension_sections": _rope("mrope_section"),
    "attention.key_length": _head_dim,
    "attention.value_length": _head_dim,
    "attention.key_length_swa": _named("head_dim"),
    "attention.value_length_swa": _named("head_dim"),
    "attention.sliding_window": _named("sliding_window"),
    "attention.sliding_window_pattern": _window_period,
    "attention.scale": lambda config: _head_dim(config) ** -0.5,
    "attention.causal": lambda config: True,
    "attention.clamp_kqv": lambda config: 0.0,
    "attention.max_alibi_bias": lambda config: 0.0,
    "attn_logit_softcapping": _named("attn_logit_softcapping"),
    "final_logit_softcapping": _named("final_logit_softcapping"),
    "logit_scale": lambda config: 1.0,
    "embedding_scale": lambda config: 1.0,
    "residual_scale": lambda config: 1.0,
    "use_parallel_residual": _named("use_parallel_residual"),
    "expert_count": _named("num_experts", "num_local_experts"),
    "expert_used_count": _named("num_experts_per_tok"),
    "expert_feed_forward_length": _named("moe_intermediate_size", "intermediate_size"),
    "expert_shared_feed_forward_length": _named("shared_expert_intermediate_size"),
    "pooling_type": lambda config: 0,
}
"""What a config means by each key that llama.cpp knows."""
