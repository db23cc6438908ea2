"""What do servers make of one machine for 1, 2, 4 and 8 clients, ours beside others?

    PYTHONPATH=FOLDER uv run python benchmarks/servers.py --threads 2 \
        --tasks spec_bench_report.jsonl --output results/servers.json

`treesnake serve` runs SmolLM2 at the bits of its file, in int8 and in float32, with drafting and
without; beside it run llama-cpp-python's server on the very same file and `transformers serve` on
it in floats, as far as they are installed, in this environment or in FOLDER. All are started first
and then measured in turn, by what `treesnake bench --server` does: greedy answers of up to
`--tokens` tokens as streams. Questions are the first turns of those in `--tasks` that have no more
than `--longest` characters, since long prompts measure how a prompt is read.
"""

import shutil
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from frame import Result, print_table, run
from server_process import free_port, started

from treesnake.errors import ServerError
from treesnake.evaluation.bench.server_load import (
    HEADS,
    ServerLoad,
    load_as_json,
    load_cells,
    run_load,
)
from treesnake.evaluation.tasks import load_questions
from treesnake.integrations.model_folders import CODE_FOLDER, export_folder
from treesnake.loading.options import LoadOptions
from treesnake.loading.smollm import find_gguf

MODEL = "smollm2"
OURS: Mapping[str, Sequence[str]] = {
    f"treesnake, {bits}, {how}": ("--dtype", dtype, "--drafter", drafter)
    for dtype, bits in {"stored": "4 bits", "int8": "int8", "float32": "float32"}.items()
    for drafter, how in {"auto": "drafting", "none": "plain"}.items()
}
THEIRS = ("llama.cpp", "transformers")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", required=True, help="JSONL files, or names")
    parser.add_argument("--longest", type=int, default=400, help="characters of a question")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--per-client", type=int, default=1)
    parser.add_argument("--answers", type=int, default=4, help="of all clients at least")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--servers", nargs="+", default=[*OURS, *THEIRS], help="only these")


def measure(arguments: Namespace) -> Result:
    questions = [
        question.turns[0]
        for task in arguments.tasks
        for question in load_questions(task)
        if len(question.turns[0]) <= arguments.longest
    ]
    step = len(questions) // max(arguments.clients)  # neighbours are of one category
    mixed = [question for first in range(step) for question in questions[first::step]]
    load = ServerLoad(
        tuple(arguments.clients),
        arguments.per_client,
        arguments.tokens,
        arguments.repeats,
        arguments.answers,
    )
    missing: dict[str, str] = {}
    with ExitStack() as running:
        folder = running.enter_context(tempfile.TemporaryDirectory())
        clients = []
        for name in arguments.servers:
            port = free_port()
            model, command = _command(name, port, arguments.threads, Path(folder))
            try:
                clients.append(running.enter_context(started(name, command, port, model)))
            except ServerError as error:
                missing[name] = str(error)
        measures = run_load(clients, mixed, load, print)
    return {
        "model": MODEL,
        "tasks": [Path(task).name for task in arguments.tasks],
        "longest": arguments.longest,
        "missing": missing,
        **load_as_json(load, measures),
    }


def show(result: Result) -> None:
    print_table(f"{result['model']}, {result['load']}", HEADS, load_cells(result["servers"]))
    print(result["missing"])


def _command(name: str, port: int, threads: int, folder: Path) -> tuple[str, list[str]]:
    """Returns what a server calls its model, and what starts it."""
    common = [sys.executable, "-m"]
    if name == "llama.cpp":
        # Otherwise a request breaks the answer off that another client is waiting for.
        options = ["--interrupt_requests", "false", "--n_ctx", "2048", "--verbose", "false"]
        options += ["--n_threads", str(threads), "--n_threads_batch", str(threads)]
        model = ["--model", str(find_gguf()), "--model_alias", MODEL]
        return MODEL, [*common, "llama_cpp.server", *model, "--port", str(port), *options]
    if name == "transformers":
        floats = str(folder / "floats")
        export_folder(MODEL, folder / "floats", drafter="none", options=LoadOptions())
        shutil.rmtree(folder / "floats" / CODE_FOLDER)
        command = ["transformers.cli.transformers", "serve", floats, "--port", str(port)]
        return floats, [*common, *command]
    serve = ["treesnake", "serve", MODEL, "--port", str(port), "--threads", str(threads)]
    return MODEL, [*common, *serve, *OURS[name]]


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
