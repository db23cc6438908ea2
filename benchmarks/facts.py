"""What every result file says about the run that made it, and where its questions come from."""

import json
from pathlib import Path
from typing import Any

from treesnake.environment import describe_environment as facts
from treesnake.files import write_text

__all__ = ["facts", "read_questions", "write_result"]


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Writes a result as JSON, whole or not at all."""
    write_text(path, json.dumps(result, indent=1) + "\n")


def read_questions(paths: list[Path]) -> list[dict[str, Any]]:
    """Reads files in Spec-Bench's format: question_id, category, turns."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]
