"""A file that only grows: every result is on disk before the next run begins."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.record import DrafterRecord, Record, RunRecord, as_line
from treesnake.json_lines import json_line, read_json_lines
from treesnake.tables import read_table


class Journal:
    """The records of a recipe so far; a run that was killed continues where it ended.

    The first line holds the recipe, each other line a record. A last line that was not finished is
    dropped.

    Args:
        path: is made if it does not exist.
        recipe: as plain data; None takes whatever the file holds.

    Raises:
        InvalidInputError: if the file holds the records of another recipe, or is none of ours.
    """

    def __init__(self, path: Path, recipe: dict[str, Any] | None = None) -> None:
        self.path = path
        if recipe is not None and not (path.exists() and path.stat().st_size):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"recipe": recipe})
        self._drop_unfinished_line()
        lines = self._lines()
        header = next(lines, None)
        if header is None or "recipe" not in header:
            raise InvalidInputError(f"{path} holds no records of a benchmark")
        self.recipe: dict[str, Any] = header["recipe"]
        if (
            recipe is not None
            and json.loads(json_line({"recipe": recipe}))["recipe"] != self.recipe
        ):
            raise InvalidInputError(
                f"{path} holds the records of another recipe, or of this one before it was "
                "changed; choose another output, or remove the file"
            )
        self.records: list[Record] = [_read(line, f"{path}") for line in lines]
        self._keys = {record.key for record in self.records}

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return key in self._keys

    def append(self, record: Record) -> None:
        """Writes a record to disk, whole."""
        self._append(as_line(record))
        self.records.append(record)
        self._keys.add(record.key)

    @property
    def runs(self) -> list[RunRecord]:
        """The records of methods."""
        return [record for record in self.records if isinstance(record, RunRecord)]

    @property
    def agreements(self) -> list[DrafterRecord]:
        """The records of drafters."""
        return [record for record in self.records if isinstance(record, DrafterRecord)]

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json_line(line))
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            for row in read_json_lines(self.path):
                yield dict(row.fields)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"{self.path} holds no records of a benchmark: {error}"
            ) from error

    def _drop_unfinished_line(self) -> None:
        """A line is there once its newline is: what follows the last one was cut off."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with self.path.open("r+b") as file:
                file.truncate(end)


def _read(line: dict[str, Any], where: str) -> Record:
    kind = DrafterRecord if line.get("kind") == "agreement" else RunRecord
    return read_table(kind, line, where)
