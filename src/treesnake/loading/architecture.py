"""Which architecture a model has: decided here, for targets and drafters alike.

What config.json says is read here and handed on. Only transformers reads it again, for models of
its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from math import isfinite
from pathlib import Path
from typing import Any

from treesnake.errors import LoadError
from treesnake.models.checkpoint import CONFIG_FILE, is_state_space, read_fields
from treesnake.models.gguf import PART_NAME

GGUF_SUFFIX = ".gguf"

GRAFTED_ONTO = "grafted_onto"
"""Names, in a config, the model of a package that has all weights which a folder lacks."""

SIZE_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "n_embd",
    "n_head",
    "n_layer",
    "n_positions",
    "d_model",
    "state_size",
    "conv_kernel",
    "num_heads",
    "n_groups",
)
"""Keys of configs that count something of which there is at least one."""

MAX_SIZE = 2**31 - 1

NUMBER = (int, float)
FIELD_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(["text_config", "rope_parameters", "rope_scaling"], (dict,)),
    **dict.fromkeys(["auto_map", "quantization_config"], (dict,)),
    **dict.fromkeys(["layer_types", "no_rope_layers", "architectures"], (list,)),
    **dict.fromkeys(["hidden_act", "hidden_activation", "rope_type", "type"], (str,)),
    **dict.fromkeys(["rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"], NUMBER),
    **dict.fromkeys(["rope_theta", "partial_rotary_factor", "factor"], NUMBER),
    **dict.fromkeys(["attention_factor", "beta_fast", "beta_slow"], NUMBER),
    **dict.fromkeys(["low_freq_factor", "high_freq_factor"], NUMBER),
    "original_max_position_embeddings": NUMBER,
    "query_pre_attn_scalar": NUMBER,
    "rope_local_base_freq": NUMBER,
    "sliding_window": (int,),
    **dict.fromkeys(["tie_word_embeddings", "attention_bias", "mlp_bias"], (bool, int)),
}
"""What else is read of a config, by name, and of the part of it that says how positions rotate."""

POSITIVE = (
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "query_pre_attn_scalar",
    "rope_local_base_freq",
    "sliding_window",
)

IMPLEMENTATION_KEYS = tuple(
    f"{prefix}{kind}_implementation{suffix}"
    for kind in ("attn", "experts")
    for prefix in ("", "_")
    for suffix in ("", "_internal")
)
IMPLEMENTATIONS = (
    None,
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
    "batched_mm",
    "grouped_mm",
)
"""Those of transformers itself. Any other name is fetched from the hub as code, and run."""


class Architecture(Enum):
    """What loads a model."""

    STATE_SPACE = "our own Mamba or Mamba-2"
    TRANSFORMERS = "a folder of transformers"
    GGUF = "a GGUF file"
    GRAFT = "mixers for a model of a package"


@dataclass(frozen=True)
class FoundModel:
    """A model on disk, of which nothing but the config was read.

    Attributes:
        name: by which it was asked for.
        path: its folder, or the GGUF file that is all of it.
        architecture: what loads it.
        fields: what config.json says; nothing for a GGUF file.
    """

    name: str
    path: Path
    architecture: Architecture
    fields: Mapping[str, Any]


def identify(name: str, path: Path) -> FoundModel:
    """Reads a model's config and says which architecture the model has.

    Args:
        name: for messages.
        path: a folder or a GGUF file.

    Raises:
        LoadError: if the folder holds no model, or its config is broken.
    """
    if path.is_file():
        return FoundModel(name, path, Architecture.GGUF, {})
    _check_folder(path)
    fields = read_fields(path)
    _check_fields(fields, path / CONFIG_FILE)
    return FoundModel(name, path, _architecture(fields), fields)


def _architecture(fields: Mapping[str, Any]) -> Architecture:
    if is_state_space(fields):
        return Architecture.STATE_SPACE
    return Architecture.GRAFT if GRAFTED_ONTO in fields else Architecture.TRANSFORMERS


def file_names(folder: Path) -> list[str]:
    """Returns the names of what a folder holds, in order.

    Raises:
        LoadError: if it cannot be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise LoadError(f"{folder} cannot be read: {error.strerror}") from error


def names_in(folder: Path) -> str:
    """Returns the first files of a folder, for messages."""
    names = file_names(folder)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"


def _check_folder(folder: Path) -> None:
    names = file_names(folder)
    if "adapter_config.json" in names:
        raise LoadError(f"{folder} is an adapter; merge it into its model and name the result")
    if CONFIG_FILE not in names:
        raise LoadError(
            f"{folder} is no model folder, it has no {CONFIG_FILE}; it holds {names_in(folder)}"
        )


def gguf_in(folder: Path) -> Path | None:
    """Returns the GGUF file of a folder that holds no other model, or None.

    Parts of one split model are one file; what sees images for a model (mmproj) is none.

    Raises:
        LoadError: if there are several.
    """
    names = file_names(folder)
    if CONFIG_FILE in names:
        return None
    files = [
        name
        for name in names
        if name.lower().endswith(GGUF_SUFFIX) and not name.lower().startswith("mmproj")
    ]
    wholes = {PART_NAME.sub("", name): name for name in reversed(files)}
    if len(wholes) > 1:
        shown = ", ".join(sorted(wholes.values())[:8]) + (", ..." if len(wholes) > 8 else "")
        raise LoadError(
            f"{folder} holds {len(wholes)} GGUF files ({shown}); name one of them, such as "
            f"{folder / files[0]}"
        )
    return folder / files[0] if files else None


def _check_fields(fields: Mapping[str, Any], path: Path) -> None:
    """Refuses sizes that are none, and names of code that would be fetched and run."""
    model_type = fields.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise LoadError(f"{path} has the model type {model_type!r:.40}, which is no text")
    text_fields = fields.get("text_config")
    for part in (fields, text_fields if isinstance(text_fields, dict) else {}):
        for key in SIZE_KEYS:
            _check_size(key, part.get(key), path)
        _check_types(part, path)
        for key in ("rope_parameters", "rope_scaling"):
            for rope in _objects(part.get(key)):
                _check_types(rope, path)
    for part in _objects(fields):
        for key in IMPLEMENTATION_KEYS:
            _check_implementation(key, part.get(key), path)


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yields a JSON object and all those in it."""
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from _objects(part)
    elif isinstance(value, list):
        for part in value:
            yield from _objects(part)


def _check_size(key: str, stated: Any, path: Path) -> None:
    """A config states a size, or one for each layer; null leaves it to transformers."""
    least, sizes = (0, stated) if isinstance(stated, list) else (1, [stated])
    for size in sizes:
        if size is not None and not (type(size) is int and least <= size <= MAX_SIZE):
            raise LoadError(
                f"{path} has {key} = {size!r:.40}, which is no whole number from {least} to "
                f"{MAX_SIZE}; fetch it again"
            )


def _check_types(fields: Mapping[str, Any], path: Path) -> None:
    for key in fields.keys() & FIELD_TYPES.keys():
        value, types = fields[key], FIELD_TYPES[key]
        if value is None:
            continue
        is_number = type(value) in (int, float)
        if type(value) not in types or (is_number and not isfinite(value)):
            wanted = " or ".join(each.__name__ for each in types)
            raise LoadError(f"{path} has {key} = {value!r:.60}, which should be of type {wanted}")
        too_small = is_number and (value < 0 or (key in POSITIVE and value == 0))
        if too_small or (key == "partial_rotary_factor" and value > 1):
            raise LoadError(f"{path} has {key} = {value!r:.60}, which makes no sense")


def _check_implementation(key: str, stated: Any, path: Path) -> None:
    for name in stated.values() if isinstance(stated, dict) else [stated]:
        if name not in IMPLEMENTATIONS:
            known = ", ".join(each for each in IMPLEMENTATIONS if each)
            raise LoadError(
                f"{path} has {key} = {name!r:.60}, which is none of those of transformers ({known})"
                " but code from elsewhere, which is never run; take the key out of the file"
            )
