"""What the scripts in this folder share: their arguments, their result files, timing in turn.

A script says what it measures, and hands it to `run`:

    if __name__ == "__main__":
        run(__doc__, measure, add_arguments=add_arguments, show=show)

The commands in its docstring make the files in results/; tests/test_benchmarks.py holds both
together.
"""

import json
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from treesnake.environment import describe_environment
from treesnake.evaluation.tasks import Question, load_questions
from treesnake.files import write_text
from treesnake.loading.smollm import find_gguf

Result = dict[str, Any]
AddArguments = Callable[[ArgumentParser], None]
Variant = Callable[[], object]


def run(
    description: str,
    measure: Callable[[Namespace], Result],
    *,
    add_arguments: AddArguments | None = None,
    show: Callable[[Result], None] | None = None,
    draw: Callable[[Result, Path], None] | None = None,
) -> None:
    """Measures, writes the result if a path is given, prints it and draws it if a folder is given.

    Args:
        description: the script's docstring; its first line goes to --help.
        measure: takes the arguments, returns what is measured.
        add_arguments: the script's own; --threads and --output are there.
        show: prints the result.
        draw: makes the pictures; then there is an argument --plot.
    """

    def add_all(parser: ArgumentParser) -> None:
        parser.add_argument("--output", type=Path, help="the result file")
        if draw:
            parser.add_argument("--plot", type=Path, help="a folder for pictures")
        if add_arguments:
            add_arguments(parser)

    arguments = parse(description, add_all)
    before = describe_environment()
    measured = measure(arguments)
    result = {"environment": {"before": before, "after": describe_environment()}, **measured}
    if arguments.output:
        write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    if show:
        print(f"{before['threads']} threads, load average {before['load_average']}")
        show(result)
    if draw and arguments.plot:
        arguments.plot.mkdir(parents=True, exist_ok=True)
        draw(result, arguments.plot)


def parse(description: str, add_arguments: AddArguments) -> Namespace:
    """Reads the arguments and sets the number of threads."""
    parser = ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def add_rounds(parser: ArgumentParser, default: int) -> None:
    """Adds how often everything is timed."""
    parser.add_argument("--rounds", type=int, default=default, help="all variants run in each")


def add_questions(parser: ArgumentParser, limit: int | None = None) -> None:
    """Adds files in Spec-Bench's format, for `read_questions`."""
    parser.add_argument("--questions", type=Path, nargs="+", required=True, help="JSONL files")
    parser.add_argument("--limit", type=int, default=limit, help="only so many questions")


def read_questions(arguments: Namespace) -> list[Question]:
    """Reads the questions that the arguments name; a limit takes some from all parts."""
    found = [question for path in arguments.questions for question in load_questions(str(path))]
    limit = arguments.limit or len(found)
    return found[:: max(len(found) // limit, 1)][:limit]


def requantized(kind: str) -> Path:
    """Writes the default target's GGUF file in another format of llama.cpp, once."""
    import llama_cpp  # noqa: PLC0415 - only where it is installed

    source = find_gguf()
    path = Path("/tmp") / f"{source.stem}.{kind}.gguf"
    if not path.exists():
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.allow_requantize = True
        parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        status = llama_cpp.llama_model_quantize(
            str(source).encode(), str(path).encode(), parameters
        )
        assert status == 0, f"llama.cpp could not write {kind}"
    return path


def time_in_turn(variants: Mapping[str, Variant], rounds: int) -> dict[str, list[float]]:
    """Runs every variant once in every round; returns the seconds of each.

    So a machine that becomes slower does so for all of them. A round before the first, which
    compiles and makes room, is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, variant in variants.items():
            started = time.perf_counter()
            variant()
            if number > 0:
                times[name].append(time.perf_counter() - started)
    return times


def milliseconds(times: Sequence[float]) -> dict[str, float]:
    """Returns the least and the median of some seconds, in milliseconds."""
    return {
        "min": round(min(times) * 1e3, 2),
        "median": round(statistics.median(times) * 1e3, 2),
    }


def print_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table whose first column is words and whose others are numbers."""
    table = Table(title=title, title_justify="left", box=None, header_style="dim")
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print()


def save_figure(figure: Any, path: Path) -> None:
    """Writes a picture of matplotlib and forgets it."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - only pictures need it

    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
