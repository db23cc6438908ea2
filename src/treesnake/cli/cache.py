"""`treesnake cache`: what is kept between runs, and its end."""

from enum import StrEnum
from typing import Annotated

import typer

from treesnake.terminal import console


class Action(StrEnum):
    """What to do with the caches."""

    SHOW = "show"
    CLEAR = "clear"


def cache(
    action: Annotated[
        Action, typer.Argument(metavar="ACTION", help="show or clear.")
    ] = Action.SHOW,
) -> None:
    """Show or clear what is kept between runs.

    These are the kernels that were compiled for this machine and the costs that calibrate measured.
    Both are made anew when they are needed. Models of the hub are not touched: `hf cache` has them.
    """
    from treesnake.loading.caches import find_caches

    output = console()
    for each in find_caches():
        what = (
            f"{each.name.replace('_', ' ')}: {len(each.files)} files, {each.num_bytes / 1e6:.1f} MB"
        )
        if action is Action.CLEAR:
            each.clear()
            what += ", removed"
        output.print(f"{what} ({each.folder or 'nowhere to write'})", soft_wrap=True)
