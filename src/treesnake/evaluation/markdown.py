"""Pages in Markdown: names and messages from outside stay what they are."""

import re
from collections.abc import Sequence

MARKS = re.compile(r"[\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])|&(?=[#\w]+;)")
"""What would begin a link, code, emphasis, HTML, an entity or another cell."""


def inline(text: str) -> str:
    """Returns Markdown for a text in a line, a heading or a cell of a table."""
    return MARKS.sub(r"\\\g<0>", " ".join(text.split()))


def code(text: str) -> str:
    """Returns Markdown for a text as code, also in a cell of a table."""
    line = " ".join(text.splitlines())
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    edge = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{edge}{line}{edge}{fence}".replace("|", "\\|")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, number_columns: int = 0) -> str:
    """Returns a table of cells that are Markdown.

    Args:
        heads: one for each column.
        rows: of the table.
        number_columns: so many of the last columns are numbers and end below each other.
    """
    words = len(heads) - number_columns
    lines = [heads, ["---"] * words + ["---:"] * number_columns, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
