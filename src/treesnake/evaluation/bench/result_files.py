"""The three files of a benchmark: records as they come, measures and tables at the end."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treesnake.evaluation.bench.journal import Journal
from treesnake.evaluation.bench.summary import Summary, summarize, to_markdown
from treesnake.outputs import check_output, write_output


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

    def check(self) -> None:
        """Checks that all of them can be written.

        Raises:
            InvalidInputError: if not.
        """
        for path in (self.summary, self.tables, self.journal):
            check_output(path)


def write_results(files: ResultFiles, environment: dict[str, Any]) -> Summary:
    """Summarizes a journal, and writes measures and tables beside it, each whole or not at all.

    Raises:
        OutputError: if one cannot be written; the journal still holds everything.
    """
    summary = summarize(Journal(files.journal), environment)
    hint = f"every run is in {files.journal}: make room, and the same command runs none again"
    write_output(files.summary, json.dumps(summary.as_json(), indent=1) + "\n", hint)
    write_output(files.tables, to_markdown(summary), hint)
    return summary
