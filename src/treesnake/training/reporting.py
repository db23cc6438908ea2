"""Who is told how a run goes: a terminal, a log, or nobody."""

import time
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from treesnake.terminal import OutsideColumn, console, progress_bar


@runtime_checkable
class Reporter(Protocol):
    """Is told what happens, and changes nothing."""

    def begin(self, stage: str, done: int, total: int | None) -> None:
        """Is told that a stage begins, how much of it was done before and how much there is."""
        ...

    def advance(self, amount: int, facts: Mapping[str, float]) -> None:
        """Is told how much more is done, and numbers that say how it goes."""
        ...

    def tell(self, message: str) -> None:
        """Is told something that is worth a line of its own."""
        ...

    def end(self) -> None:
        """Is told that the stage has ended, in whatever way."""
        ...


class NoReporter:
    """Tells nobody."""

    def begin(self, stage: str, done: int, total: int | None) -> None:
        """Does nothing."""

    def advance(self, amount: int, facts: Mapping[str, float]) -> None:
        """Does nothing."""

    def tell(self, message: str) -> None:
        """Does nothing."""

    def end(self) -> None:
        """Does nothing."""


class TerminalReporter:
    """Shows a progress bar on standard error; where that is no terminal, a line now and then.

    Args:
        seconds_between: lines of a log.
    """

    def __init__(self, seconds_between: float = 60.0) -> None:
        self._console = console(is_error=True)
        self._seconds_between = seconds_between
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._done, self._total = 0, ""
        self._stage = ""
        self._last_line_s = 0.0

    def begin(self, stage: str, done: int, total: int | None) -> None:
        """Starts the bar of a stage."""
        self.end()
        self._stage, self._done = stage, done
        self._total = "" if total is None else f" of {total}"
        self._last_line_s = time.monotonic()
        if not self._console.is_terminal:
            return
        self._progress = progress_bar(
            self._console,
            OutsideColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            OutsideColumn("{task.fields[facts]}"),
            is_kept=True,
        )
        self._task = self._progress.add_task(stage, completed=done, total=total, facts="")
        self._progress.start()

    def advance(self, amount: int, facts: Mapping[str, float]) -> None:
        """Moves the bar."""
        self._done += amount
        shown = " · ".join(f"{name} {_readable(value)}" for name, value in facts.items())
        if self._progress is not None:
            self._progress.update(self._task, advance=amount, facts=shown)
        elif time.monotonic() - self._last_line_s >= self._seconds_between:
            self._last_line_s = time.monotonic()
            self.tell(f"{self._done}{self._total} · {shown}")

    def tell(self, message: str) -> None:
        """Prints a line above the bar."""
        self._console.print(f"{self._stage}: {message}", soft_wrap=True)

    def end(self) -> None:
        """Leaves the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _readable(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
