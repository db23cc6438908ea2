"""How fast are GGUF files at their own bits, beside llama.cpp on the very same files?

    uv run --group bench python benchmarks/gguf.py --threads 2 --output results/gguf.json \
        --files smollm2 smollm2:Q8_0 qwen2.5-coder-0.5b-instruct-q4_k_m.gguf

Plain decoding, prefill and scoring of chains are timed in turn, all methods in each round. How long
a file takes to open, tokenizer included, and what is resident then, is measured in a process of its
own, the second of two. smollm2 is the file of the package, smollm2:Q8_0 what llama.cpp makes of it.
Run it on a quiet machine; the load is in the result. fetch_qwen.py fetches the last file.
"""

import json
import resource
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from frame import Result, add_rounds, milliseconds, print_table, requantized, run, time_in_turn

from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.networks import load_network
from treesnake.loading.options import LoadOptions
from treesnake.loading.smollm import find_gguf
from treesnake.models.tree_network import TreeState
from treesnake.prompt import Prompt

NODE_COUNTS = (1, 2, 4, 8, 16)
CONTEXT = 1024
OURS, THEIRS = "treesnake", "llama.cpp"


def add_arguments(parser: ArgumentParser) -> None:
    add_rounds(parser, 3)
    parser.add_argument("--files", nargs="+", default=["smollm2"], help="paths, or as above")
    parser.add_argument("--tokens", type=int, default=16, help="decoded in each round")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--open", help=f"only opens the file with {OURS} or {THEIRS}; internal")


def measure(arguments: Namespace) -> Result:
    if arguments.open:
        return _open(arguments.open, _path(arguments.files[0]))
    return {
        "rounds": arguments.rounds,
        "prompt_tokens": arguments.prompt,
        "files": [_measure_file(_path(name), arguments) for name in arguments.files],
    }


def _path(name: str) -> str:
    if name.startswith("smollm2:"):
        return str(requantized(name.removeprefix("smollm2:")))
    return str(find_gguf() if name == "smollm2" else name)


def _measure_file(path: str, arguments: Namespace) -> Result:
    has_peer = find_spec("llama_cpp") is not None
    engines = (OURS, THEIRS) if has_peer else (OURS,)
    opening = {engine: _in_own_process(engine, path) for engine in engines}
    network = load_network(find_checkpoint(path), LoadOptions("stored", "cpu"))
    state = network.network.new_state()
    prompt = list(range(1000, 1000 + arguments.prompt))
    variants: dict[str, Callable[[], object]] = {
        f"{OURS}: prefill": lambda: _prefill(state, prompt),
        f"{OURS}: decoding": lambda: _decode(state, arguments.tokens),
    }
    for count in NODE_COUNTS:
        variants[f"{OURS}: scoring {count}"] = lambda count=count: _score(state, count)
    if has_peer:
        llama = _llama(path)
        variants[f"{THEIRS}: prefill"] = lambda: _llama_prefill(llama, prompt)
        variants[f"{THEIRS}: decoding"] = lambda: _llama_decode(llama, arguments.tokens)
    times = time_in_turn(variants, arguments.rounds)
    return {
        "file": Path(path).name,
        "file_bytes": Path(path).stat().st_size,
        "weights_bytes": network.num_bytes,
        "activations": network.description["activations"],
        "opening": opening,
        "ms": {
            name: milliseconds(
                [each / (arguments.tokens if name.endswith("decoding") else 1) for each in seconds]
            )
            for name, seconds in times.items()
        },
    }


def _prefill(state: TreeState, prompt: Sequence[int]) -> None:
    state.prefill(Prompt.of([7]))  # forgets what it holds
    state.prefill(Prompt.of([*prompt, 7]))


def _decode(state: TreeState, num_tokens: int) -> None:
    token = 7
    for _ in range(num_tokens):
        token = int(state.extend([token], [-1])[0].argmax())
        state.commit((0,))


def _score(state: TreeState, count: int) -> None:
    state.extend(list(range(2000, 2000 + count)), range(-1, count - 1))
    state.commit(())


def _llama(path: str) -> Any:
    threads = torch.get_num_threads()
    return import_module("llama_cpp").Llama(
        path, n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False
    )


def _llama_prefill(llama: Any, prompt: Sequence[int]) -> None:
    llama.reset()
    llama.eval(list(prompt))


def _llama_decode(llama: Any, num_tokens: int) -> None:
    for _ in range(num_tokens):
        llama.eval([7])


def _in_own_process(engine: str, path: str) -> Result:
    command = [sys.executable, __file__, "--files", path, "--open", engine]
    command += ["--threads", str(torch.get_num_threads())]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _open(engine: str, path: str) -> Result:
    """Opens a file and runs one token, so that all weights were read once.

    The libraries that opening a file imports belong to neither its time nor its memory.
    """
    find_checkpoint(str(find_gguf()))
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    if engine == OURS:
        checkpoint = find_checkpoint(path)
        checkpoint.tokenizer.encode("a")
        state = load_network(checkpoint, LoadOptions("stored", "cpu")).network.new_state()
        seconds = time.perf_counter() - started
        state.extend([7], [-1])
    else:
        llama = _llama(path)
        seconds = time.perf_counter() - started
        llama.eval([7])
    resident = psutil.Process().memory_info().rss
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": round(seconds, 2),
        "resident_bytes": resident,
        "peak_bytes": peak,
        "before_bytes": before,
    }


def show(result: Result) -> None:
    if "files" not in result:
        print(json.dumps({key: result[key] for key in result if key != "environment"}))
        return
    for file in result["files"]:
        print_table(
            file["file"],
            ("what", "least ms", "median ms"),
            (
                (name, f"{found['min']:.2f}", f"{found['median']:.2f}")
                for name, found in file["ms"].items()
            ),
        )
        print(file["opening"])


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
