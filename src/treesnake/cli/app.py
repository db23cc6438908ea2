"""The `treesnake` command."""

import sys

import typer
from rich.console import Console

from treesnake.cli.chat import chat
from treesnake.cli.generate import generate
from treesnake.cli.info import info
from treesnake.errors import TreesnakeError

app = typer.Typer(
    help="Lossless speculative decoding: the target's own text, faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(generate)
app.command()(chat)
app.command()(info)


def main() -> None:
    """Runs the command line; what a user can cause ends in one message and exit status 2."""
    try:
        app()
    except TreesnakeError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)
