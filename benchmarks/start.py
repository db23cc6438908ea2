"""How long does a stranger wait: for the version, for help, for the first answer?

    git worktree add ../before c2a2356
    PEERS=FOLDER uv run python benchmarks/start.py \
        --other ../before --threads 2 --output results/start.json

FOLDER holds llama-cpp-python, if the environment does not. Each version starts in processes of its
own, in turns. An answer on a fresh machine has an empty cache of kernels; answers after it find
them on disk. Reported are the median wall-clock seconds until a process ends, and the tokens per
step of the first answer and of the second. Peers answer with one token of the same file. Last come
the milliseconds from a call to the first token in one process, plainly and with the default
drafter, behind prompts of several lengths.
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
ASKED = f'[{{"role": "user", "content": "{QUESTION}"}}]'
PEERS = {
    "llama.cpp": f"""
from llama_cpp import Llama
from treesnake.loading.smollm import find_gguf
model = Llama(str(find_gguf()), n_ctx=2048, n_threads={{threads}}, verbose=False)
model.create_chat_completion({ASKED}, max_tokens=1)
""",
    "transformers": f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
from treesnake.loading.smollm import find_gguf
file = find_gguf()
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
inputs = tokenizer.apply_chat_template(
    {ASKED}, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
model.generate(**inputs, max_new_tokens=1)
""",
}
"""Each loads the default target's file and makes one token; the file is found by its package."""

LENGTHS = (50, 500, 4000)
FIRST_TOKENS = """
import json, sys, time
from statistics import median
from treesnake import Pair, Prompt, SpeculativeDecoder
from treesnake.drafters.none import NoDrafterModel
with_drafter = SpeculativeDecoder.from_pretrained("smollm2")
plain = with_drafter.with_pair(Pair(with_drafter.pair.target, NoDrafterModel()))
text = with_drafter.encode(open({text!r}, encoding="utf-8").read()[:40000]).token_ids
found = {{}}
for length in {lengths}:
    seconds = [[], []]
    for _ in range({repeats} + 1):
        for decoder, each in zip((plain, with_drafter), seconds):
            started = time.perf_counter()
            next(decoder.stream(Prompt(text[:length]), max_new_tokens=8))
            each.append(time.perf_counter() - started)
    found[length] = {{
        name: round(1000 * median(each[1:]), 1)
        for name, each in zip(("plain_ms", "with_drafter_ms"), seconds)
    }}
print(json.dumps(found))
"""


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
    peers = {
        name: _median(
            [
                _run(ROOT, code.replace("{threads}", str(arguments.threads)), arguments.threads)[0]
                for _ in range(arguments.starts)
            ]
        )
        for name, code in PEERS.items()
    }
    text = str(ROOT / "docs" / "measurements.md")
    code = FIRST_TOKENS.format(text=text, lengths=LENGTHS, repeats=arguments.starts)
    return {
        "other_commit": _commit(arguments.other),
        "peers": peers,
        "first_tokens": json.loads(_run(ROOT, code, arguments.threads)[1].splitlines()[-1]),
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
    peers = [[name, f"{seconds:.2f}"] for name, seconds in result["peers"].items()]
    print_table("Seconds until a peer has made one token", ["", "seconds"], peers)
    lengths = [
        [str(length), *(f"{each[name]:.0f}" for name in ("plain_ms", "with_drafter_ms"))]
        for length, each in result["first_tokens"].items()
    ]
    print_table("Milliseconds to the first token", ["prompt", "plain", "with drafter"], lengths)


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
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(checkout / "src"), os.environ.get("PEERS")))
        ),
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
