"""How long does a stranger wait: for the version, for help, for the first answer?

    git worktree add ../before c2a2356
    uv run python benchmarks/start.py --other ../before --threads 2 --output results/start.json

Each version starts in processes of its own, in turns. An answer on a fresh machine has an empty
cache of kernels; answers after it find them on disk. Reported are the median wall-clock seconds
until a process ends, and the tokens per step of the first answer and of the second.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from frame import Result, print_table, run

ROOT = Path(__file__).parent.parent
CLI = "import sys; sys.argv[1:] = {arguments!r}; from treesnake.cli import main; main()"
STARTS = {
    "import torch": "import torch",
    "import treesnake": "import treesnake",
    "treesnake --version": CLI.format(arguments=["--version"]),
    "treesnake --help": CLI.format(arguments=["--help"]),
}
QUESTION = "Why is the sky blue?"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--other", type=Path, required=True, help="a checkout of another version")
    parser.add_argument("--starts", type=int, default=3, help="how often each version starts")
    parser.add_argument("--tokens", type=int, default=64)


def measure(arguments: Namespace) -> Result:
    """Starts both versions in turns."""
    versions = {"this": ROOT, "other": arguments.other.resolve()}
    rows: dict[str, Any] = {}
    for name, code in STARTS.items():
        seconds: dict[str, list[float]] = {version: [] for version in versions}
        for _ in range(arguments.starts + 1):
            for version, checkout in versions.items():
                seconds[version].append(_run(checkout, code, arguments.threads)[0])
        rows[name] = {version: _median(each[1:]) for version, each in seconds.items()}
    first, later = {}, {}
    for version, checkout in versions.items():
        with tempfile.TemporaryDirectory() as cache:
            first[version] = _answer(checkout, arguments, cache, arguments.tokens)
            second = _answer(checkout, arguments, cache, arguments.tokens)
            ready = [
                _answer(checkout, arguments, cache, 1)["seconds"] for _ in range(arguments.starts)
            ]
        later[version] = second | {"until_the_first_token_s": _median(ready)}
    return {
        "other_commit": _commit(arguments.other),
        "starts": rows,
        "first_answer": first,
        "second_answer": later,
    }


def show(result: Result) -> None:
    def row(name: str, values: dict[str, Any], key: str) -> list[str]:
        return [name, *(f"{values[version][key]:.2f}" for version in ("this", "other"))]

    first, second = result["first_answer"], result["second_answer"]
    rows = [
        [name, f"{row['this']:.2f}", f"{row['other']:.2f}"]
        for name, row in result["starts"].items()
    ]
    rows.append(row("one token, kernels on disk", second, "until_the_first_token_s"))
    rows.append(row("first answer on a fresh machine", first, "seconds"))
    rows.append(row("tokens/step of the first answer", first, "tokens_per_step"))
    rows.append(row("tokens/step of the second", second, "tokens_per_step"))
    print_table("Seconds from the start of a process", ["", "this", "other"], rows)


def _answer(checkout: Path, arguments: Namespace, cache: str, num_tokens: int) -> Result:
    options = ["generate", QUESTION, "--json", "-n", str(num_tokens)]
    code = CLI.format(arguments=[*options, "--threads", str(arguments.threads)])
    seconds, output = _run(checkout, code, arguments.threads, cache)
    said = json.loads(output)
    return {"seconds": round(seconds, 3), "tokens_per_step": round(said["tokens_per_step"], 3)}


def _run(checkout: Path, code: str, threads: int, cache: str | None = None) -> tuple[float, str]:
    """Returns the wall-clock seconds of a process, and what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout / "src"),
        "OMP_NUM_THREADS": str(threads),
        **({"NUMBA_CACHE_DIR": cache, "TREESNAKE_CACHE": cache} if cache else {}),
    }
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - started, done.stdout


def _median(seconds: list[float]) -> float:
    return round(statistics.median(seconds), 3)


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
