"""Where text leaves for a terminal or a pipe: the one gate for names, paths and model output.

Outside text is never markup, and its control characters move no cursor: a terminal shows a picture
of each. Characters that the encoding of a stream lacks become "?". A pipe gets model output as it
is.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

DELETE = 0x7F
PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
CONTROLS = PICTURES | {DELETE: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
"""What is shown in the place of control characters; a newline and a tab are none here."""


class OutsideConsole(Console):
    """A console to which all text is text: no markup, no emoji codes, no control characters."""

    def render_str(self, text: str, **options: object) -> Text:  # type: ignore[override]
        """Returns what is shown of a text, which is where each string passes."""
        return super().render_str(plain(text), **options)  # type: ignore[arg-type]

    def on_broken_pipe(self) -> None:
        """Lets the caller decide: rich itself would exit with status 1, a verdict of ours."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class OutsideColumn(TextColumn):
    """Text in the line of a progress bar, such as what is asked next."""

    def render(self, task: Task) -> Text:
        """Returns the text as it is."""
        return Text(plain(self.text_format.format(task=task)), style=self.style, justify="left")


def console(*, is_error: bool = False) -> OutsideConsole:
    """Returns what prints to standard output, or to standard error."""
    return OutsideConsole(stderr=is_error, highlight=False, markup=False, emoji=False)


def plain(text: str) -> str:
    """Returns a text with pictures of its control characters."""
    return text.translate(CONTROLS)


def page(markdown: str) -> Markdown:
    """Returns a page of Markdown to print."""
    return Markdown(plain(markdown), hyperlinks=False)


def progress_bar(shown_on: Console, *columns: ProgressColumn, is_kept: bool = False) -> Progress:
    """Returns a progress bar, which leaves no trace unless it is kept."""
    return Progress(*columns, console=shown_on, transient=not is_kept)


@contextmanager
def counted_progress(shown_on: Console) -> Iterator[Callable[[int, int, str], None]]:
    """Shows how far many runs are.

    What it yields is told the number of the run that begins, how many there are, and what it is.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with progress_bar(shown_on, OutsideColumn("{task.description:<40.40}"), *columns) as bar:
        line = bar.add_task("starting", total=None)

        def begin(number: int, num_runs: int, what: str) -> None:
            bar.update(line, completed=number - 1, total=num_runs, description=what)

        yield begin


def write(piece: str) -> None:
    """Writes a piece of a text to standard output at once."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    print(plain(piece) if is_terminal else piece, end="", flush=True)


def prepare_streams() -> None:
    """Makes writing possible whatever the streams are: closed, or lacking characters."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def flush_streams() -> None:
    """Writes what is still to be written, so that a full disk is noticed while it can be told.

    Raises:
        OSError: if that is impossible.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def give_up_output() -> None:
    """Lets what cannot be written go nowhere, so that Python's own end does not fail by it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
