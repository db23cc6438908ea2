"""The gate for JSON files that describe a model: configs, an index of shards, a draft vocabulary.

Files of the hub are written by anybody. Whatever is in one, its reader gets plain values of
bounded size and depth, or the user a `LoadError` that names the file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treesnake.errors import LoadError
from treesnake.models.pointers import check_content
from treesnake.utf8 import is_text

MAX_BYTES = 64 * 1024**2
"""An index of the largest models takes a tenth of it."""

MAX_DEPTH = 64
"""Values that hold values; real configs have about five levels."""


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        LoadError: as `read_json` does, or if it is another kind of value.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise LoadError(f"{path} is no JSON object but {value!r:.40}; fetch it again")
    return value


def read_json(path: Path) -> Any:
    """Reads a JSON file in UTF-8.

    Raises:
        LoadError: if there is no such file, it cannot be read, is too large or nested too deep, is
            not JSON, holds NaN or text that cannot be written, or gives a key two values.
    """
    return parse_json(_read_bytes(path), path)


def parse_json(content: bytes, path: Path) -> Any:
    """Parses JSON as `read_json` does.

    Args:
        content: of the file, or of the part of it that is JSON.
        path: of the file, for messages.

    Raises:
        LoadError: as `read_json` does.
    """
    try:
        value = json.loads(
            content.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant
        )
    except RecursionError as error:
        raise LoadError(_too_deep(path)) from error
    except (ValueError, MemoryError) as error:
        check_content(content, path)
        raise LoadError(f"{path} is no JSON object ({error}); fetch it again") from error
    _check_values(value, path)
    return value


def _read_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise LoadError(f"{path} is a folder or a device, where a JSON file should be")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise LoadError(f"{path.parent} has no {path.name}; fetch it again") from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise LoadError(f"{path} has more than {MAX_BYTES} bytes, too many for a JSON file here")
    return content


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a dict, as json does, but refuses a key with two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"the key {key!r} has two values")
    return found


def _constant(name: str) -> float:
    """Returns an infinity, which configs do hold; NaN is none of their numbers."""
    if name == "NaN":
        raise ValueError("it holds NaN")
    return float(name)


def _check_values(value: Any, path: Path) -> None:
    """Checks depth and texts, level by level: the file may be too deep for a recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        for text in level:
            if isinstance(text, str) and not is_text(text):
                raise LoadError(f"{path} holds half a character, {text!r:.40}; fetch it again")
        level = [inner for outer in level for inner in _contents(outer)]
        if not level:
            return
    raise LoadError(_too_deep(path))


def _contents(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else ()


def _too_deep(path: Path) -> str:
    return f"{path} is nested more than {MAX_DEPTH} levels deep; fetch it again"
