"""How fast is plain decoding, and what does scoring several nodes cost?

    uv run --group bench python benchmarks/plain_decoding.py --threads 2 \
        --output results/plain_decoding.json

Every method decodes the same text greedily, one token at a time, all methods in turn, again and
again; the median seconds per token over all rounds are reported, prefill and compilation not
counted. Methods: the two engines of treesnake at each dtype, "stored" being the 4 bits of the GGUF
file that the default target comes from; transformers' generate, eager and compiled; llama.cpp on
that file, and on the same weights at Q8_0 and F16, made from it; and as a floor, what it takes to
read as many bytes as the weights have, once.
All is done with one thread and with all of them. Run it on a quiet machine; the load is in the
result.
"""

import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from frame import Result, add_rounds, print_table, requantized, run
from transformers import StoppingCriteria

from treesnake.loading.options import LoadOptions
from treesnake.loading.pretrained import load_pretrained
from treesnake.loading.smollm import find_gguf
from treesnake.prompt import Prompt
from treesnake.protocols import Target
from treesnake.targets.load import load_target
from treesnake.tree import TokenTree

QUESTION = "Explain in a few paragraphs why the sky is blue and sunsets are red."
NODE_COUNTS = (1, 2, 4, 8, 16, 32, 64)

FILE = "stored"
"""The file as it is, Q4_1, in the place of a format that is made from it."""

Decode = Callable[[int, int], list[float]]
"""Decodes so many tokens with so many threads and returns the seconds of each."""


def add_arguments(parser: ArgumentParser) -> None:
    add_rounds(parser, 5)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--only", nargs="*", help="methods whose names contain one of these")


def measure(arguments: Namespace) -> Result:
    thread_counts = sorted({1, arguments.threads})
    methods, prompt = _methods(arguments.target, arguments.only)
    seconds: dict[tuple[str, int], list[float]] = {}
    failures: dict[str, str] = {}
    for round_number in range(arguments.rounds + 1):
        for name, decode in methods.items():
            for threads in thread_counts:
                if name in failures:
                    continue
                try:
                    times = decode(arguments.tokens, threads)
                except Exception as error:  # noqa: BLE001 - a peer that cannot run is a result
                    failures[name] = f"{type(error).__name__}: {error}"[:300]
                    continue
                if round_number > 0:  # the first round compiles and warms
                    seconds.setdefault((name, threads), []).append(statistics.median(times))
        print(f"round {round_number} of {arguments.rounds}", flush=True)

    decoding = {
        f"{name}, {threads} thread{'s' * (threads > 1)}": {
            "ms_per_token": round(statistics.median(times) * 1e3, 2),
            "range_ms": [round(min(times) * 1e3, 2), round(max(times) * 1e3, 2)],
        }
        for (name, threads), times in seconds.items()
    }
    return {
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "prompt_tokens": len(prompt),
        "decoding": decoding,
        "failures": failures,
        "scoring_ms": _scoring(
            arguments.target, prompt, thread_counts, arguments.rounds, arguments.only
        ),
    }


def _methods(target: str, only: list[str] | None) -> tuple[dict[str, Decode], list[int]]:
    wanted = lambda name: only is None or any(part in name for part in only)  # noqa: E731
    pretrained = load_pretrained(target, LoadOptions(dtype="float32", device="cpu"))
    text = pretrained.tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False
    )
    prompt = pretrained.tokenizer.encode(text, add_special_tokens=False)
    methods: dict[str, Decode] = {}
    num_weights = sum(weight.numel() for weight in pretrained.model.parameters())
    sizes = {"float32": 4 * num_weights, "float16": 2 * num_weights, "int8": num_weights}
    for dtype, num_bytes in (sizes | {"stored": find_gguf().stat().st_size}).items():
        if wanted(name := f"reading {dtype} weights once"):
            methods[name] = _reading(num_bytes)
    for dtype in ("float32", "float16", "int8", "stored"):
        if wanted(name := f"treesnake native {dtype}"):
            methods[name] = _treesnake(target, "native", dtype, prompt)
    if wanted("treesnake generic float32"):
        methods["treesnake generic float32"] = _treesnake(target, "generic", "float32", prompt)
    if wanted("transformers float32"):
        methods["transformers float32"] = _transformers(pretrained.model, prompt)
    if wanted("transformers compiled float32"):
        compiled = load_pretrained(target, LoadOptions(dtype="float32", device="cpu")).model
        methods["transformers compiled float32"] = _transformers(compiled, prompt, compiled=True)
    for kind in (FILE, "Q8_0", "F16"):
        if wanted(name := f"llama.cpp {kind}"):
            methods[name] = _llama_cpp(kind, prompt)
    return methods, prompt


def _reading(num_bytes: int) -> Decode:
    weights = torch.ones(num_bytes // 4)

    def decode(num_tokens: int, threads: int) -> list[float]:
        torch.set_num_threads(threads)
        times = []
        for _ in range(num_tokens):
            started = time.perf_counter()
            weights.sum()
            times.append(time.perf_counter() - started)
        return times

    return decode


def _treesnake(target: str, engine: str, dtype: str, prompt: list[int]) -> Decode:
    model, _ = load_target(target, LoadOptions(dtype, "cpu", engine))

    def decode(num_tokens: int, threads: int) -> list[float]:
        torch.set_num_threads(threads)
        session = model.new_session()
        session.prefill(Prompt.of(prompt))
        token = prompt[-1]
        times = []
        for _ in range(num_tokens):
            started = time.perf_counter()
            logits = session.score(TokenTree.chain([token]))
            token = int(logits[0].argmax())
            session.commit((0,))
            times.append(time.perf_counter() - started)
        return times

    return decode


class _Clock(StoppingCriteria):
    """Notes when each token was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def _transformers(model: Any, prompt: list[int], *, compiled: bool = False) -> Decode:
    options = {"cache_implementation": "static"} if compiled else {}
    if compiled:
        model.forward = torch.compile(model.forward, fullgraph=False, dynamic=False)

    def decode(num_tokens: int, threads: int) -> list[float]:
        torch.set_num_threads(threads)
        clock = _Clock()
        model.generate(
            torch.tensor([prompt]),
            min_new_tokens=num_tokens + 1,
            max_new_tokens=num_tokens + 1,
            do_sample=False,
            stopping_criteria=[clock],
            **options,
        )
        return np.diff(clock.times).tolist()

    return decode


def _llama_cpp(kind: str, prompt: list[int]) -> Decode:
    if find_spec("llama_cpp") is None:
        return _missing
    import llama_cpp  # noqa: PLC0415 - only where it is installed

    path = find_gguf() if kind == FILE else requantized(kind)
    loaded: dict[int, Any] = {}

    def decode(num_tokens: int, threads: int) -> list[float]:
        if threads not in loaded:
            loaded[threads] = llama_cpp.Llama(
                str(path),
                n_ctx=1024,
                n_threads=threads,
                n_threads_batch=threads,
                verbose=False,
            )
        llama = loaded[threads]
        llama.reset()
        llama.eval(prompt)
        times = []
        for _ in range(num_tokens):
            started = time.perf_counter()
            token = int(np.argmax(llama.scores[llama.n_tokens - 1]))
            llama.eval([token])
            times.append(time.perf_counter() - started)
        return times

    return decode


def _missing(num_tokens: int, threads: int) -> list[float]:
    raise ModuleNotFoundError("llama-cpp-python is not installed: uv sync --group bench")


def _scoring(
    target: str, prompt: list[int], threads: list[int], rounds: int, only: list[str] | None
) -> dict[str, dict[str, float]]:
    """Returns the median milliseconds of scoring chains of several lengths, prompt committed."""
    table = {}
    for engine, dtype in [
        ("native", "float32"),
        ("native", "float16"),
        ("native", "int8"),
        ("native", "stored"),
        ("generic", "float32"),
    ]:
        if only is not None and not any(part in f"treesnake {engine} {dtype}" for part in only):
            continue
        model, _ = load_target(target, LoadOptions(dtype, "cpu", engine))
        session = model.new_session()
        session.prefill(Prompt.of(prompt))
        for number in threads:
            torch.set_num_threads(number)
            times: dict[int, list[float]] = {count: [] for count in NODE_COUNTS}
            for _ in range(4 * rounds + 1):
                for count in NODE_COUNTS:
                    times[count].append(_time_of_scoring(session, prompt, count))
            name = f"treesnake {engine} {dtype}, {number} thread{'s' * (number > 1)}"
            table[name] = {
                str(count): round(statistics.median(values[1:]) * 1e3, 2)
                for count, values in times.items()
            }
    return table


def _time_of_scoring(session: Target, prompt: list[int], count: int) -> float:
    tree = TokenTree.chain((prompt * count)[:count])
    started = time.perf_counter()
    session.score(tree)
    return time.perf_counter() - started


def show(result: Result) -> None:
    print_table(
        "plain decoding",
        ("method", "ms/token", "tokens/s"),
        (
            (name, f"{entry['ms_per_token']:.2f}", f"{1e3 / entry['ms_per_token']:.1f}")
            for name, entry in result["decoding"].items()
        ),
    )
    print_table(
        "scoring, ms for nodes",
        ("engine", *map(str, NODE_COUNTS)),
        (
            (name, *(f"{value:.1f}" for value in row.values()))
            for name, row in result["scoring_ms"].items()
        ),
    )
    for name, failure in result["failures"].items():
        print(f"{name} failed: {failure}")


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
