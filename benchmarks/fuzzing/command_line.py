"""Runs a command of treesnake as a shell would, inside this process."""

import re
import sys

from treesnake.cli.app import main
from treesnake.errors import TreesnakeError

ERROR = re.compile(r"error: (.*)", re.DOTALL | re.IGNORECASE)


class CommandError(TreesnakeError):
    """A command told in words why it cannot go on, and ended with status 2."""


class UntoldExitError(Exception):
    """A command ended with a status that says nothing, or without a word."""


def run_command(*arguments: object) -> None:
    """Runs a command.

    Raises:
        CommandError: with what the command said.
        UntoldExitError: if it ended in another way.
    """
    told = _Listener(sys.stderr)
    before, sys.argv, sys.stderr = (sys.argv, sys.stderr), ["treesnake", *map(str, arguments)], told
    try:
        main()
    except SystemExit as error:
        if error.code in (None, 0):
            return
        found = ERROR.search(told.text)
        if error.code == 2 and found:
            raise CommandError(found.group(1)) from None
        raise UntoldExitError(f"status {error.code}: {told.text[-300:]}") from None
    finally:
        sys.argv, sys.stderr = before


class _Listener:
    """A standard error that is kept, too."""

    def __init__(self, stream: object) -> None:
        self._stream = stream
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False
