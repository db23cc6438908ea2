r"""Files of JSON lines: the one reader of them, and how a line is written.

A line ends at "\n" and nowhere else: U+2028, U+0085 and their like are text. Each line holds one
object. Blank lines are passed over.

There are two ways to read. `read_json_lines` stops at the first line that is no object and names
it: for questions, prompts, journals. `sound_json_lines` leaves such lines out and counts them:
for corpora, where one odd row in a million must not end the work of hours.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treesnake.errors import InvalidInputError
from treesnake.utf8 import check_form, decode_text, described, writable

NO_OBJECT = "with no JSON object"
"""Why a line is left out that is broken, cut off, or another value."""

FIRST_ROWS = 5
"""So many numbers of rows that were left out are kept for each reason."""


@dataclass(frozen=True)
class Row:
    """One object of a file.

    Attributes:
        number: of its line, from 1.
        where: what the row is called in messages, such as "line 3 of questions.jsonl".
        fields: the object.
    """

    number: int
    where: str
    fields: Mapping[str, Any]

    def field(self, name: str) -> Any:
        """Returns the value of a field.

        Raises:
            InvalidInputError: if there is no such field.
        """
        if name not in self.fields:
            found = ", ".join(map(described, self.fields)) or "nothing"
            raise InvalidInputError(f'{self.where} lacks "{name}"; it has {found}')
        return self.fields[name]


class LeftOutRows:
    """Counts rows that were left out, by reason, and keeps the numbers of the first ones."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return sum(self._counts.values())

    def add(self, number: int, reason: str) -> None:
        """Counts a row.

        Args:
            number: of the row.
            reason: the same words for all rows that lack the same.
        """
        self._counts[reason] = self._counts.get(reason, 0) + 1
        first = self._first.setdefault(reason, [])
        if len(first) < FIRST_ROWS:
            first.append(number)

    def __str__(self) -> str:
        """Says how many rows were left out and why, most frequent reasons first."""
        parts = [
            f"{each['rows']} {each['reason']} (row {', '.join(map(str, each['first']))}"
            f"{', ...' if each['rows'] > len(each['first']) else ''})"
            for each in self.as_json()
        ]
        return f"{len(self)} rows left out" + (": " if parts else "") + "; ".join(parts)

    def as_json(self) -> list[dict[str, Any]]:
        """Returns reasons, numbers of rows and the first of them as plain data."""
        return [
            {"reason": reason, "rows": count, "first": self._first[reason]}
            for reason, count in sorted(self._counts.items(), key=lambda item: -item[1])
        ]

    @classmethod
    def from_json(cls, counted: Sequence[Mapping[str, Any]]) -> "LeftOutRows":
        """Goes on counting from what `as_json` returned."""
        rows = cls()
        for each in counted:
            rows._counts[each["reason"]] = each["rows"]
            rows._first[each["reason"]] = [*each["first"]]
        return rows


def read_json_lines(path: Path) -> Iterator[Row]:
    """Yields the objects of a file.

    Raises:
        InvalidInputError: naming the file and the line, at the first one that holds no object.
    """
    return parse_json_lines(read_lines(path), f"{path}")


def parse_json_lines(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    r"""Yields the objects of lines, each of which ends with "\n" but for the last.

    Args:
        lines: such as a file that is open for reading bytes.
        name: of the file in messages.

    Raises:
        InvalidInputError: naming the line, at the first one that holds no object.
    """
    for number, line in enumerate(lines, 1):
        fields = _parse_line(line, number, name)
        if fields is not None:
            yield Row(number, f"line {number} of {name}", fields)


def sound_json_lines(path: Path, left_out: LeftOutRows, num_read: int = 0) -> Iterator[Row]:
    """Yields the objects of a file; lines that hold none are counted.

    Args:
        path: of the file.
        left_out: counts them.
        num_read: so many lines were read before, and are passed over.

    Raises:
        InvalidInputError: if the file cannot be read at all.
    """
    for number, line in enumerate(read_lines(path), 1):
        if number <= num_read:
            continue
        try:
            fields = _parse_line(line, number, f"{path}")
        except InvalidInputError:
            left_out.add(number, NO_OBJECT)
            continue
        if fields is not None:
            yield Row(number, f"line {number} of {path}", fields)


def read_lines(path: Path) -> Iterator[bytes]:
    r"""Yields the lines of a file of text, each with the "\n" that ends it.

    Raises:
        InvalidInputError: if the file cannot be read, or is compressed or of another encoding.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    check_form(line, f"{path}")  # another encoding is no matter of one line
                yield line
    except InvalidInputError:
        raise
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error


def parse_json(text: str, where: str) -> Any:
    """Returns what a text of JSON says.

    Raises:
        InvalidInputError: if it is none, is nested too deep, or has one key twice in an object.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise InvalidInputError(f"{where} is nested too deep to be read") from error
    except ValueError as error:
        raise InvalidInputError(f"{where} is no JSON ({error}), got {described(text)}") from error


def json_line(fields: Mapping[str, Any]) -> bytes:
    """Returns an object as a line of a file; what is no text becomes U+FFFD."""
    return writable(json.dumps(fields, ensure_ascii=False)).encode() + b"\n"


def _parse_line(line: bytes, number: int, name: str) -> dict[str, Any] | None:
    """Returns the object of a line, or None if the line is blank."""
    text = decode_text(line, name, number)
    if not text.strip():
        return None
    where = f"line {number} of {name}"
    if not line.endswith(b"\n"):
        where += ", which may be cut off,"
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise InvalidInputError(
            f"{where} must be a JSON object, such as {{...}}, not {described(value)}"
        )
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise ValueError(f"the key {described(name)} stands there twice")
            names.add(name)
    return fields
