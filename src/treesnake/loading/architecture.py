"""Which architecture a model has: decided here, for targets and drafters alike.

What config.json says is read here and handed on. Only transformers reads it again, for models of
its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from treesnake.errors import LoadError
from treesnake.models.checkpoint import CONFIG_FILE, is_state_space, read_fields


class Architecture(Enum):
    """What loads a model."""

    STATE_SPACE = "our own Mamba or Mamba-2"
    TRANSFORMERS = "a folder of transformers"
    GGUF = "a GGUF file"


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
    known = is_state_space(fields)
    architecture = Architecture.STATE_SPACE if known else Architecture.TRANSFORMERS
    return FoundModel(name, path, architecture, fields)


def names_in(folder: Path) -> str:
    """Returns the first files of a folder, for messages."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"


def _check_folder(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    if "adapter_config.json" in names:
        raise LoadError(f"{folder} is an adapter; merge it into its model and name the result")
    if CONFIG_FILE not in names:
        gguf = next((name for name in names if name.endswith(".gguf")), None)
        advice = (
            f"to load a GGUF file, name it: {folder / gguf}"
            if gguf
            else f"it holds {names_in(folder)}"
        )
        raise LoadError(f"{folder} is no model folder, it has no {CONFIG_FILE}; {advice}")
