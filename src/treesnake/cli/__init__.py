"""The command line: one file per command, no logic of its own."""

from treesnake.cli.app import main

__all__ = ["main"]
