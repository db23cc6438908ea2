"""Writes plain data as TOML, also what no recipe should have in it."""

import json
import math
from typing import Any

from fuzzing.mutations import Raw


def to_toml(table: dict[str, Any]) -> bytes:
    """Returns a table with one line for each of its keys; what is None is left out."""
    lines = [f"{_key(key)} = {_inline(item)}\n" for key, item in table.items() if item is not None]
    return "".join(lines).encode("utf-8", "surrogatepass")


def _key(key: str) -> str:
    return json.dumps(str(key))


def _inline(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value).replace(":", "=")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_inline(item) for item in value if item is not None) + "]"
    if isinstance(value, dict):
        pairs = (
            f"{_key(key)} = {_inline(item)}" for key, item in value.items() if item is not None
        )
        return "{" + ", ".join(pairs) + "}"
    return json.dumps(value)
