"""The three files of a benchmark: records as they come, measures and tables at the end."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treesnake.evaluation.bench.journal import Journal
from treesnake.evaluation.bench.summary import Summary, summarize, to_markdown
from treesnake.files import write_text


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
    write_text(files.summary, json.dumps(summary.as_json(), indent=1) + "\n")
    write_text(files.tables, to_markdown(summary))
    return summary
