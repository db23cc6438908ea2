"""The three files of a benchmark: records as they come, measures and tables at the end."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treesnake.evaluation.bench.journal import Journal
from treesnake.evaluation.bench.summary import Summary, summarize, to_markdown


@dataclass(frozen=True)
class ResultFiles:
    """Where the results of a recipe are.

    Attributes:
        summary: measures, as JSON; what is committed.
    """

    summary: Path

    @property
    def journal(self) -> Path:
        """Every record, one a line."""
        return self.summary.with_suffix(".log.jsonl")

    @property
    def tables(self) -> Path:
        """The tables, as Markdown."""
        return self.summary.with_suffix(".md")


def write_results(files: ResultFiles, environment: dict[str, Any]) -> Summary:
    """Summarizes a journal, and writes measures and tables beside it, each whole or not at all."""
    summary = summarize(Journal(files.journal), environment)
    _write(files.summary, json.dumps(summary.as_json(), indent=1) + "\n")
    _write(files.tables, to_markdown(summary))
    return summary


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
