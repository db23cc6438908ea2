"""Reads what a benchmark wrote."""

from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.journal import Journal
from treesnake.evaluation.bench.record import RunRecord
from treesnake.evaluation.bench.result_files import ResultFiles
from treesnake.evaluation.bench.summary import ALL, Row, Summary
from treesnake.json_lines import parse_json
from treesnake.tables import read_table
from treesnake.utf8 import read_text_file

LENGTH = " tokens"
"""How the categories of long contexts end."""


@dataclass(frozen=True)
class Result:
    """A benchmark's measures, and the runs whose steps can be shown.

    Attributes:
        summary: the measures.
        shown: runs with every step; none where only the measures are at hand.
    """

    summary: Summary
    shown: tuple[RunRecord, ...]

    @property
    def groups(self) -> list[tuple[str, str]]:
        """Pairs and samplings, each of which has a table of its own."""
        return list(dict.fromkeys((row.pair, row.sampling) for row in self.summary.rows))

    def rows(self, pair: str, sampling: str, category: str = ALL) -> list[Row]:
        """Returns the rows of a table."""
        return [
            row
            for row in self.summary.rows
            if (row.pair, row.sampling, row.category) == (pair, sampling, category)
        ]

    def categories(self, pair: str, sampling: str) -> list[str]:
        """Returns the categories of questions, without the one of all."""
        found = dict.fromkeys(
            row.category
            for row in self.summary.rows
            if (row.pair, row.sampling) == (pair, sampling) and row.category != ALL
        )
        return list(found)

    def lengths(self, pair: str, sampling: str) -> list[int]:
        """Returns the context lengths that are categories, in order."""
        names = self.categories(pair, sampling)
        return sorted(
            int(name.removesuffix(LENGTH))
            for name in names
            if name.endswith(LENGTH) and name.removesuffix(LENGTH).isdecimal()
        )


def _is_whole(recipe: dict[str, Any]) -> bool:
    methods = recipe.get("methods")
    return (
        all(isinstance(recipe.get(name), str) for name in ("name", "description"))
        and isinstance(methods, list)
        and bool(methods)
        and all(isinstance(method, str) for method in methods)
    )


def _has_nan(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    if isinstance(value, list):
        return any(map(_has_nan, value))
    return isinstance(value, float) and isnan(value)


def read_result(path: Path) -> Result:
    """Reads the summary of a benchmark, and its journal where that lies beside it.

    Raises:
        InvalidInputError: if the file is no such summary.
    """
    data = parse_json(read_text_file(path), f"the file of results {path}")
    if not isinstance(data, dict) or "rows" not in data:
        raise InvalidInputError(f"{path} holds no results of treesnake bench")
    recipe = data.get("recipe")
    if not isinstance(recipe, dict) or not _is_whole(recipe):
        raise InvalidInputError(
            f"{path} holds no results of treesnake bench: its recipe needs a name, a description "
            "and methods; make the results again"
        )
    if _has_nan(data["rows"]):
        raise InvalidInputError(
            f"{path} holds measures that are no numbers; make the results again"
        )
    journal = ResultFiles(path).journal
    runs = Journal(journal).runs if journal.exists() else []
    shown = tuple(run for run in runs if any(turn.shown for turn in run.turns))
    return Result(read_table(Summary, data, str(path)), shown)
