"""The `treesnake` command."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup
from typer.main import get_command

from treesnake.cli.garbage import put_off_collection
from treesnake.errors import TreesnakeError
from treesnake.terminal import console, flush_streams, give_up_output, plain, prepare_streams

COMMANDS = {
    "generate": "Answer a prompt and say how fast.",
    "chat": "Hold a conversation.",
    "serve": "Serve a model to clients of OpenAI's API.",
    "export-folder": "Write a model folder that transformers decodes speculatively.",
    "info": "Show this machine, what is installed, and how a model would run.",
    "cache": "Show or clear what is kept between runs.",
    "memory": "Show or clear what a folder keeps of earlier answers.",
    "calibrate": "Measure what drafting and scoring take on this machine.",
    "train": "Train a drafter for your target.",
    "bench": "Compare methods on the same questions, in turn.",
    "verify": "Look for anything that speculation changes.",
    "report": "Make one HTML page of results, which needs nothing else.",
    "scene": "Draw coloured shapes to ask the model shapeworld about.",
}
"""Each command with the first line of its help. A command is the function of its name in the module
of its name, which is imported when the command is called: some need libraries that take seconds."""

TOLD, FAULT, CLOSED_PIPE = 2, 70, 141
"""Exit statuses: what a user can mend, a fault of ours, and a reader that has gone, as shells have
them. 1 is no error, it is the verdict of verify."""


class _ClosedPipeError(Exception):
    """The reader of the output has gone."""


@contextmanager
def _writing_all() -> Iterator[None]:
    """Writes all that was printed; typer itself would end with 1 where a reader has gone."""
    try:
        try:
            yield
        finally:
            flush_streams()
    except BrokenPipeError as error:
        raise _ClosedPipeError from error


class _Commands(TyperGroup):
    """The commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = dict.fromkeys(COMMANDS)  # what a mistyped name is compared with

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Imports a command; returns None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        command = typer.Typer(**_SETTINGS)
        function = cmd_name.replace("-", "_")
        command.command()(getattr(import_module(f"treesnake.cli.{function}"), function))
        return get_command(command)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands into the help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Reads the arguments; options such as --version print and end here."""
        with _writing_all():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        with _writing_all():
            return super().invoke(ctx)


_SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,  # boxes take half of a terminal's width
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(cls=_Commands, no_args_is_help=True, **_SETTINGS | {"add_completion": True})


def main() -> None:
    """Runs the command line; what a user can cause ends in one message and exit status 2."""
    put_off_collection()
    prepare_streams()
    try:
        app()
    except TreesnakeError as error:
        _tell(str(error))
        sys.exit(TOLD)
    except _ClosedPipeError:
        give_up_output()
        sys.exit(CLOSED_PIPE)
    except OSError as error:
        where = "the output" if error.filename is None else error.filename
        _tell(f"{where} cannot be read or written: {error.strerror or error}")
        give_up_output()
        sys.exit(TOLD)
    except Exception:  # noqa: BLE001 - Python would end with 1
        traceback.print_exc()
        sys.exit(FAULT)


def _tell(message: str) -> None:
    """Prints an error, unless standard error is what cannot be written."""
    line = Text.assemble(("error: ", "bold red"), plain(message))
    try:
        console(is_error=True).print(line, soft_wrap=True)
    except OSError:
        give_up_output()


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
