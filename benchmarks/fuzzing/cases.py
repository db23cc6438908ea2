"""What every door of the fuzzer has: specimens, and cases that are made of them by chance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

Opened = Any
"""What came of opening an input: plain data."""


class RefusalError(Exception):
    """The reference reader does not take an input, for a reason of its own."""


def differ(opened: Opened, meant: Opened) -> str | None:
    """Returns in a few words how two values differ; None if they are equal."""
    return None if opened == meant else f"{str(opened)[:200]}, not {str(meant)[:200]}"


@dataclass(frozen=True)
class Case:
    """One input, and how it is opened.

    Attributes:
        specimen: what it was made of, and the role that it plays.
        mutations: what was done to it, in order; nothing for a specimen as it is.
        files: what is mutated, to which an error's message must point.
        open: opens it as a user would; returns plain data.
        meant: returns what should come of it; raises where the reference reader refuses.
        compare: returns how two values differ, or None.
    """

    specimen: str
    mutations: tuple[str, ...]
    files: Path
    open: Callable[[], Opened]
    meant: Callable[[], Opened]
    compare: Callable[[Opened, Opened], str | None] = differ


class Door(Protocol):
    """A place where files of users come in."""

    @property
    def specimens(self) -> Sequence[str]:
        """The names of what cases are made of."""
        ...

    def prepare(self, folder: Path) -> None:
        """Makes all specimens, the same bytes every time, in an empty folder."""
        ...

    def case(
        self, specimens: Path, specimen: str, work: Path, random: Random, num_mutations: int
    ) -> Case:
        """Makes an input in an empty folder.

        Args:
            specimens: the folder that `prepare` has filled, which stays as it is.
            specimen: its name.
            work: an empty folder for the input.
            random: makes every choice.
            num_mutations: none for a specimen as it is.
        """
        ...
