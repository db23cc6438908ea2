"""`treesnake memory`: what was kept of earlier answers, and its end."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from treesnake.cli import options
from treesnake.errors import InvalidInputError
from treesnake.memory.memory_log import KeptMemories
from treesnake.terminal import console


class Action(StrEnum):
    """What to do with a memory."""

    SHOW = "show"
    CLEAR = "clear"


def memory(
    action: Annotated[
        Action, typer.Argument(metavar="ACTION", help="show or clear.")
    ] = Action.SHOW,
    memory: options.Memory = None,
) -> None:
    """Show or clear what a folder keeps of earlier answers.

    The folder is the one that --memory had when they were made.
    """
    folder = options.on_or_folder(memory)
    if not isinstance(folder, str):
        raise InvalidInputError(
            "no folder keeps anything unless it is named: give --memory FOLDER, or set "
            "TREESNAKE_MEMORY; what a process remembers otherwise ends with it"
        )
    kept = KeptMemories(Path(folder).expanduser())
    what = kept.description
    if action is Action.CLEAR:
        kept.clear()
        what += ", removed"
    console().print(what, soft_wrap=True)
