"""Tables of TOML or JSON as frozen dataclasses: what does not fit is told.

A field's type is one of: str, int, float, bool, `None | ...`, a `Literal`, a tuple of one type, a
dict of names and one type, a dataclass, or a union of dataclasses that are told apart by a field
`kind`.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from treesnake.errors import InvalidInputError

Data = TypeVar("Data")

KIND = "kind"
"""The field by which a union of dataclasses is told apart."""


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
        return tuple(_read_value(get_args(hint)[0], item, where) for item in value)
    if get_origin(hint) is dict:
        _checked(value, isinstance(value, dict), "a table", where)
        of_one = get_args(hint)[1]
        return {name: _read_value(of_one, item, f"{where}.{name}") for name, item in value.items()}
    if is_dataclass(hint):
        _checked(value, isinstance(value, dict), "a table", where)
        return read_table(hint, value, where)  # type: ignore[arg-type]
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
    _checked(kind, kind in by_kind, f"one of {_listed(by_kind)}", f"{where}, {KIND}")
    return read_table(by_kind[kind], value, where)


def _checked(value: Any, is_right: bool, expected: str, where: str) -> Any:
    if not is_right:
        raise InvalidInputError(f"{where} must be {expected}, not {value!r}")
    return value


def _listed(items: Any) -> str:
    return ", ".join(map(repr, items))
