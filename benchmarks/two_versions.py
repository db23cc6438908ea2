"""Is this version slower than another one?

    git worktree add ../before COMMIT
    uv run python benchmarks/two_versions.py --other ../before --threads 2
        --questions FILE.jsonl --limit 13 --output results/two_versions.json

A process of each version loads the default pair once for every method. Then both answer the same
questions in turns, one at a time, the first one being another at every question. Reported are the
median ratios of this version's tokens per second to those of the other, with a bootstrap interval
over questions, and whether the texts are equal.

Before that both start in turns, in processes of their own: until the package is imported, the
version is printed, and each pair is loaded. Reported are the median seconds and their ratio.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from frame import Result, add_questions, print_table, read_questions, run

ROOT = Path(__file__).parent.parent
METHODS = (
    ("float32", "none", "off"),
    ("float32", "auto", "chain(4)"),
    ("float32", "auto", "self-tuning"),
    ("int8", "none", "off"),
    ("int8", "auto", "chain(4)"),
    ("int8", "auto", "self-tuning"),
)
NUM_RESAMPLES = 2000
IMPORT = "import treesnake"
PRINT_VERSION = "import sys; sys.argv[1:] = ['--version']; from treesnake.cli import main; main()"

WORKER = """
import json, sys
import torch
threads, target, dtype, drafter, search, num_tokens = json.loads(sys.argv[1])
torch.set_num_threads(threads)
from treesnake import SpeculativeDecoder
decoder = SpeculativeDecoder.from_pretrained(
    target, drafter, dtype=dtype, device="cpu", search=search
)
print("ready", flush=True)
for line in sys.stdin:
    message = [{"role": "user", "content": json.loads(line)}]
    made = decoder.generate(message, max_new_tokens=num_tokens)
    print(json.dumps([made.prefill_s, made.decode_s, made.token_ids]), flush=True)
"""


class Version:
    """A process of one checkout, with one pair and search."""

    def __init__(self, checkout: Path, arguments: list[Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(checkout),
            text=True,
        )
        self._read()

    def answer(self, question: str) -> tuple[float, float, list[int]]:
        """Returns seconds of prefill and of decoding, and the tokens."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        prefill_s, decode_s, tokens = json.loads(self._read())
        return prefill_s, decode_s, tokens

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a version ended without an answer; its error is above")
        return line


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--other", type=Path, required=True, help="a checkout of another version")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--starts", type=int, default=9, help="how often each version starts")
    add_questions(parser, 13)


def measure(arguments: Namespace) -> Result:
    """Lets both versions answer in turns, method by method."""
    questions = [question.turns[0] for question in read_questions(arguments)]
    starts = _compare_starts(arguments)
    rows = {}
    for dtype, drafter, search in METHODS:
        options = [arguments.threads, arguments.target, dtype, drafter, search, arguments.tokens]
        versions = [Version(ROOT, options), Version(arguments.other, options)]
        for version in versions:
            version.answer("Say hello.")  # compiles and warms
        rows[f"{dtype}, {drafter}, {search}"] = _compare(versions, questions)
        for version in versions:
            version.close()
    return {
        "other_commit": _commit(arguments.other),
        "tokens": arguments.tokens,
        "questions": len(questions),
        "starts": starts,
        "methods": rows,
    }


def show(result: Result) -> None:
    print_table(
        f"Start-up beside {result['other_commit']}: seconds",
        ["until", "this", "other", "ratio", "interval"],
        [
            [
                name,
                f"{row['seconds']:.2f}",
                f"{row['other_seconds']:.2f}",
                f"{row['ratio']:.3f}",
                "{:.3f}-{:.3f}".format(*row["ratio_interval"]),
            ]
            for name, row in result["starts"].items()
        ],
    )
    print_table(
        f"This version beside {result['other_commit']}: tokens per second, prefill",
        ["method", "decoding", "interval", "prefill", "equal texts"],
        [
            [
                name,
                f"{row['decoding']:.3f}",
                "{:.3f}-{:.3f}".format(*row["decoding_interval"]),
                f"{row['prefill']:.3f}",
                f"{row['equal']} of {result['questions']}",
            ]
            for name, row in result["methods"].items()
        ],
    )


def _compare_starts(arguments: Namespace) -> Result:
    """Returns the seconds of either version from the start of a process to what is named."""
    starts = {
        IMPORT: lambda checkout: _run(checkout, IMPORT),
        "treesnake --version": lambda checkout: _run(checkout, PRINT_VERSION),
    }
    for dtype in ("float32", "int8"):
        options = [arguments.threads, arguments.target, dtype, "auto", "self-tuning", 1]
        starts[f"default pair loaded, {dtype}"] = partial(_load, options)
    rows = {}
    for name, start in starts.items():
        seconds: tuple[list[float], list[float]] = ([], [])
        for number in range(arguments.starts + 1):
            for index in (0, 1) if number % 2 else (1, 0):
                started = time.perf_counter()
                start((ROOT, arguments.other)[index])
                if number:  # the first start reads files that the others find in memory
                    seconds[index].append(time.perf_counter() - started)
        ours, others = (statistics.median(each) for each in seconds)
        ratios = [our / other for our, other in zip(*seconds, strict=True)]
        rows[name] = {
            "seconds": round(ours, 3),
            "other_seconds": round(others, 3),
            "ratio": round(statistics.median(ratios), 4),
            "ratio_interval": _interval(ratios),
        }
    return rows


def _run(checkout: Path, code: str) -> None:
    command = [sys.executable, "-c", code]
    subprocess.run(command, env=_environment(checkout), stdout=subprocess.DEVNULL, check=True)


def _load(options: list[Any], checkout: Path) -> None:
    Version(checkout, options).close()


def _environment(checkout: Path) -> dict[str, str]:
    """Returns variables that give a version a cache of its own: others' caches may not suit it."""
    cache = Path(tempfile.gettempdir()) / f"treesnake-{_commit(checkout)}"
    source = (checkout / "src").resolve()
    return {**os.environ, "PYTHONPATH": str(source), "TREESNAKE_CACHE": str(cache)}


def _compare(versions: list[Version], questions: list[str]) -> Result:
    decoding, prefill, equal = [], [], 0
    for number, question in enumerate(questions):
        order = (0, 1) if number % 2 else (1, 0)
        answers = {index: versions[index].answer(question) for index in order}
        speeds = [len(answers[index][2]) / answers[index][1] for index in (0, 1)]
        decoding.append(speeds[0] / speeds[1])
        prefill.append(answers[1][0] / answers[0][0])
        equal += answers[0][2] == answers[1][2]
    return {
        "decoding": round(statistics.median(decoding), 4),
        "decoding_interval": _interval(decoding),
        "prefill": round(statistics.median(prefill), 4),
        "equal": equal,
    }


def _interval(ratios: list[float]) -> list[float]:
    """Returns the 95 % bootstrap interval of the median."""
    generator = np.random.default_rng(0)
    drawn = generator.choice(ratios, (NUM_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return [round(float(low), 4), round(float(high), 4)]


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
