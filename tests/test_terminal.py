"""Text that leaves for a terminal: shown as it is, and never obeyed."""

import io
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.progress import Progress
from rich.table import Table

import treesnake
from treesnake.terminal import OutsideColumn, OutsideConsole, page, plain

MARKED = "[/b] [bold]x[/] :snake: \x1b[31mred\x1b]0;title\x07"


def printed(*things: object, width: int = 200) -> str:
    file = io.StringIO()
    output = OutsideConsole(file=file, width=width, highlight=False, markup=False, emoji=False)
    output.print(*things)
    return file.getvalue()


@given(st.text())
@example(MARKED)
@example("\x9b2J\x7f\r\b")
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    table = Table("head", title=text)
    table.add_row(text)
    shown = printed(text) + printed(table)
    assert not [c for c in shown if c not in "\n\t" and (c < " " or "\x7f" <= c <= "\x9f")]


def test_markup_is_text() -> None:
    assert "[/b] [bold]x[/] :snake: " in printed(MARKED)
    assert plain(MARKED).startswith("[/b] [bold]x[/] :snake: \u241b[31mred")
    column = OutsideColumn("{task.description:<20.20}")
    progress = Progress(column)
    progress.add_task(MARKED)
    assert column.render(progress.tasks[0]).plain == "[/b] [bold]x[/] :sna"


@pytest.mark.parametrize("width", [1, 2, 20])
def test_any_width_will_do(width: int) -> None:
    table = Table("head", "another")
    table.add_row(MARKED, "1.0")
    assert printed(table, width=width) is not None
    assert printed(page("# Head\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"), width=width)


def test_consoles_and_bars_are_made_in_one_place() -> None:
    """Elsewhere a name such as "[/b]" would be markup."""
    folder = Path(treesnake.__file__).parent
    for path in folder.rglob("*.py"):
        if path.name != "terminal.py":
            code = path.read_text("utf-8")
            for name in ("Console(", " Progress(", "TextColumn(", "Markdown("):
                assert name not in code, f"{path}: {name}"
