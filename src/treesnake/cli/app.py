"""The `treesnake` command."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from treesnake.cli.bench import bench
from treesnake.cli.calibrate import calibrate
from treesnake.cli.chat import chat
from treesnake.cli.generate import generate
from treesnake.cli.info import info
from treesnake.cli.report import report
from treesnake.cli.train import train
from treesnake.cli.verify import verify_command
from treesnake.errors import TreesnakeError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes take half of a terminal's width
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(chat)
app.command()(info)
app.command()(calibrate)
app.command()(train)
app.command()(bench)
app.command("verify")(verify_command)
app.command()(report)


def main() -> None:
    """Runs the command line; what a user can cause ends in one message and exit status 2."""
    try:
        app()
    except TreesnakeError as error:
        message = Text.assemble(("error: ", "bold red"), str(error))
        Console(stderr=True, highlight=False).print(message, soft_wrap=True)
        sys.exit(2)


def _print_version(is_asked: bool) -> bool:
    if is_asked:
        print(f"treesnake {version('treesnake')}")
        raise typer.Exit
    return is_asked


@app.callback()
def treesnake(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Lossless speculative decoding: the target's own text, faster."""
