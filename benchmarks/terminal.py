"""Draws the README's picture of a terminal: an answer of the default pair and its last tree.

    uv run python benchmarks/terminal.py docs/images/terminal.svg

The text, its colours and the statistics are those of a run on this machine.
"""

import io
from argparse import ArgumentParser
from pathlib import Path

from rich.console import Console
from rich.text import Text

from treesnake import SpeculativeDecoder
from treesnake.cli.statistics import explained, summary

QUESTION = "Name three rivers and say where each one is."
COLUMNS = 92


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokens", type=int, default=96)
    arguments = parser.parse_args()
    decoder = SpeculativeDecoder.from_pretrained("smollm2")
    asked = [{"role": "user", "content": QUESTION}]
    decoder.generate(
        asked, max_new_tokens=arguments.tokens
    )  # what the search learns, it knows then
    generation = decoder.generate(asked, max_new_tokens=arguments.tokens)
    terminal = Console(file=io.StringIO(), record=True, width=COLUMNS, highlight=False)
    command = f'treesnake generate --show -n {arguments.tokens} "{QUESTION}"'
    terminal.print(Text.assemble(("$ ", "dim"), command))
    terminal.print()
    for line in explained(decoder.explain(generation)):
        terminal.print(line)
    terminal.print()
    terminal.print(Text(summary(generation), "dim"))
    terminal.save_svg(str(arguments.output), title="treesnake")


if __name__ == "__main__":
    main()
