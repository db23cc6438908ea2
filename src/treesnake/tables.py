"""Tables of TOML or JSON as frozen dataclasses: what does not fit is told.

A field's type is one of: str, int, float, bool, `None | ...`, a `Literal`, a tuple of one type, a
dict of names and one type, a dataclass, or a union of dataclasses that are told apart by a field
`kind`.
"""

import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from treesnake.arguments import shown
from treesnake.errors import InvalidInputError
from treesnake.utf8 import read_text_file

Data = TypeVar("Data")

KIND = "kind"
"""The field by which a union of dataclasses is told apart."""

LARGEST_NUMBER = 2**53
"""No number in a recipe is larger: it counts tokens, texts or seconds."""

MOST_SHOWN = 100
"""Characters of a wrong value that a message repeats."""

LONGEST_NAME = 100
"""Characters of a name that becomes a file's or a folder's."""

DEVICE_NAMES = {"con", "prn", "aux", "nul"} | {f"{p}{n}" for p in ("com", "lpt") for n in range(10)}
"""What Windows takes for devices, with any suffix."""


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a recipe: TOML in UTF-8, with or without a byte order mark.

    Raises:
        InvalidInputError: if it cannot be read, or holds a number that is not finite or larger than
            any that makes sense, or text with a NUL in it; the file and the key are named.
    """
    text = read_text_file(path)
    try:
        table = tomllib.loads(text)
        leaves = list(_leaves(table))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"the recipe {path} cannot be read: {error}") from error
    for key, value in leaves:
        _check_leaf(value, f"the recipe {path}, {key}")
    return table


def check_file_name(name: str, where: str) -> None:
    """Checks a name that becomes a file's or a folder's, here and on other systems.

    Raises:
        InvalidInputError: if it is empty, leaves the folder that it belongs in, or is none that
            every system can have.
    """
    if fault := _fault_of_name(name):
        raise InvalidInputError(f"{where} names a file or folder, so {fault}, not {name[:120]!r}")


def _fault_of_name(name: str) -> str | None:
    faults = {
        "it must not be empty": not name,
        f"it must have at most {LONGEST_NAME} characters": len(name) > LONGEST_NAME,
        "it must be no part of a path: no slash, backslash or colon, not . or ..": name
        in (".", "..")
        or any(character in name for character in "/\\:"),
        'it must have no control characters and none of <>"|?*': not name.isprintable()
        or any(character in name for character in '<>"|?*'),
        "it must not begin or end with a space or a dot": name.strip(" .") != name,
        "it must not be the name of a device": name.lower().partition(".")[0] in DEVICE_NAMES,
    }
    return next((fault for fault, is_there in faults.items() if is_there), None)


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yields all values of a table that are no tables, and all keys, with their places."""
    if isinstance(value, dict):
        for key, item in value.items():
            place = f"{where}.{key}" if where else key
            yield place, key
            yield from _leaves(item, place)
    elif isinstance(value, list):
        for number, item in enumerate(value, 1):
            yield from _leaves(item, f"{where}[{number}]")
    else:
        yield where, value


def _check_leaf(value: Any, where: str) -> None:
    if isinstance(value, str):
        _checked(value, "\0" not in value, "text without a NUL", repr(where)[1:-1])
    if isinstance(value, int | float):
        is_sane = abs(value) <= LARGEST_NUMBER  # not so of nan
        _checked(value, is_sane, f"a finite number of at most {LARGEST_NUMBER}", where)


def read_table(kind: type[Data], table: Mapping[str, Any], where: str) -> Data:
    """Makes a dataclass of a table.

    Args:
        kind: the dataclass.
        table: keys and values as tomllib or json give them.
        where: what the table is called in messages.

    Raises:
        InvalidInputError: naming the key, what was found and what is expected.
    """
    hints = get_type_hints(kind)
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(table.keys() - known.keys()):
        raise InvalidInputError(
            f'{where} has an unknown key "{unknown[0]}"; the keys are {", ".join(sorted(known))}'
        )
    missing = [name for name, field in known.items() if _is_required(field) and name not in table]
    if missing:
        raise InvalidInputError(f'{where} lacks the key "{missing[0]}"')
    values = {
        name: _read_value(hints[name], value, f"{where}, {name}") for name, value in table.items()
    }
    return kind(**values)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _read_value(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if get_origin(hint) is UnionType:
        return _read_union(get_args(hint), value, where)
    if get_origin(hint) is Literal:
        return _checked(value, value in get_args(hint), f"one of {_listed(get_args(hint))}", where)
    if get_origin(hint) is tuple:
        _checked(value, isinstance(value, list), "a list", where)
        of_one = get_args(hint)[0]
        return tuple(
            _read_value(of_one, item, f"{where}[{number}]") for number, item in enumerate(value, 1)
        )
    if get_origin(hint) is dict:
        _checked(value, isinstance(value, dict), "a table", where)
        of_one = get_args(hint)[1]
        return {name: _read_value(of_one, item, f"{where}.{name}") for name, item in value.items()}
    if is_dataclass(hint):
        _checked(value, isinstance(value, dict), "a table", where)
        return read_table(hint, value, where)  # type: ignore[arg-type]
    if type(value) is int:
        _checked(value, abs(value) <= sys.float_info.max, "a number that a float holds", where)
    if hint is float and type(value) is int:
        return float(value)
    return _checked(value, type(value) is hint, f"of type {hint.__name__}", where)


def _read_union(members: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and NoneType in members:
        return None
    present = [member for member in members if member is not NoneType]
    if len(present) == 1:
        return _read_value(present[0], value, where)
    _checked(value, isinstance(value, dict), "a table", where)
    by_kind = {get_args(get_type_hints(member)[KIND])[0]: member for member in present}
    kind = value.get(KIND)
    is_known = isinstance(kind, str) and kind in by_kind
    _checked(kind, is_known, f"one of {_listed(by_kind)}", f"{where}, {KIND}")
    return read_table(by_kind[kind], value, where)


def _checked(value: Any, is_right: bool, expected: str, where: str) -> Any:
    if not is_right:
        raise InvalidInputError(f"{where} must be {expected}, not {shown(value, MOST_SHOWN)}")
    return value


def _listed(items: Any) -> str:
    return ", ".join(map(repr, items))
