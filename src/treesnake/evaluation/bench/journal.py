"""A file that only grows: every result is on disk before the next run begins."""

import json
import logging
import os
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.record import DrafterRecord, Record, RunRecord, as_line
from treesnake.json_lines import Row, json_line, parse_json_lines
from treesnake.outputs import telling_failure
from treesnake.tables import read_table

logger = logging.getLogger(__name__)


class Journal:
    """The records of a recipe so far; a run that was killed continues where it ended.

    The first line holds the recipe, each other line a record. A last line that was not finished is
    told and passed over; it is cut off where records are to follow. A file that does not begin as
    a journal does is never changed.

    Args:
        path: is made if it does not exist.
        recipe: as plain data, to go on with it; None reads whatever the file holds.

    Raises:
        InvalidInputError: if the file holds the records of another recipe, or a run twice, or is
            none of ours.
        OutputError: if it cannot be written.
    """

    def __init__(self, path: Path, recipe: dict[str, Any] | None = None) -> None:
        self.path = path
        self.records: list[Record] = []
        self._by_key: dict[tuple[str, ...], Record] = {}
        if recipe is not None:
            self._begin(json_line({"recipe": recipe}))
        content = self._content()
        end = content.rfind(b"\n") + 1
        try:
            header, *rows = parse_json_lines(BytesIO(content[:end]), f"{path}")
            self.recipe: dict[str, Any] = header.fields["recipe"]
        except (InvalidInputError, ValueError, KeyError) as error:
            raise self._no_journal(error) from error
        self._check_recipe(recipe)
        for row in rows:
            self._add(_read(row), row.where)
        if end < len(content):
            self._pass_over(end, is_cut=recipe is not None)

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return key in self._by_key

    def run(self, key: tuple[str, ...]) -> RunRecord | None:
        """Returns the record of a run, if it was made."""
        record = self._by_key.get(key)
        return record if isinstance(record, RunRecord) else None

    def append(self, record: Record) -> None:
        """Writes a record to disk, whole.

        Raises:
            OutputError: if it cannot be written; what was written before stays.
        """
        self._append(json_line(as_line(record)))
        self._add(record, f"{self.path}")

    @property
    def runs(self) -> list[RunRecord]:
        """The records of methods."""
        return [record for record in self.records if isinstance(record, RunRecord)]

    @property
    def agreements(self) -> list[DrafterRecord]:
        """The records of drafters."""
        return [record for record in self.records if isinstance(record, DrafterRecord)]

    def _begin(self, header: bytes) -> None:
        """Writes the first line, also where it was not finished the last time."""
        content = self._content() if self.path.exists() else b""
        if content.find(b"\n") < 0 and header.startswith(content):
            with self._telling_failure():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.open("ab").close()
                os.truncate(self.path, 0)
            self._append(header)

    def _append(self, line: bytes) -> None:
        with self._telling_failure(), self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _telling_failure(self) -> AbstractContextManager[None]:
        return telling_failure(
            self.path,
            f"the {len(self.records)} records in it are kept: make room, and the same command goes "
            "on behind them",
        )

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"the records {self.path} cannot be read: {error}") from error

    def _check_recipe(self, recipe: dict[str, Any] | None) -> None:
        if not isinstance(self.recipe, dict):
            raise self._no_journal("its recipe is no object")
        if recipe is None or json.loads(json_line(recipe)) == self.recipe:
            return
        raise InvalidInputError(
            f"{self.path} holds the records of another recipe, or of this one before it was "
            "changed; choose another output, or remove the file"
        )

    def _add(self, record: Record, where: str) -> None:
        if record.key in self._by_key:
            raise InvalidInputError(
                f"{where} holds a run that is there already ({', '.join(record.key)}): two "
                "benchmarks wrote the file at once, and their times are mixed; remove it and run "
                "again"
            )
        self.records.append(record)
        self._by_key[record.key] = record

    def _pass_over(self, end: int, *, is_cut: bool) -> None:
        """Leaves out what follows the last newline: a line is there once its newline is."""
        logger.warning(
            "the last record of %s was cut off while it was written; %s",
            self.path,
            "it is made again" if is_cut else "it is left out",
        )
        if is_cut:
            with self._telling_failure():
                os.truncate(self.path, end)

    def _no_journal(self, reason: object) -> InvalidInputError:
        return InvalidInputError(
            f"{self.path} holds no records of a benchmark ({reason}), so it is left as it is; "
            "choose another output"
        )


def _read(row: Row) -> Record:
    kind = DrafterRecord if row.fields.get("kind") == "agreement" else RunRecord
    return read_table(kind, row.fields, row.where)
