"""What do a GGUF file's own bits cost in quality, and is drafting exact with them?

    uv run --group bench python benchmarks/gguf_quality.py --threads 2 --windows 4 \
        --files smollm2 --output results/gguf_quality.json

The perplexity of each file on held-out text: with its own integers, as float32 of the same file,
and in llama.cpp. The text is Python's own help on the language, in windows of so many tokens, of
which the second half counts. Then, greedy answers to a few questions: is every token with drafting
that of plain decoding?
"""

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pydoc_data.topics import topics
from typing import Any

import torch
from frame import Result, print_table, run
from jaxtyping import Float
from torch import Tensor

from treesnake.decoder import SpeculativeDecoder
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.networks import load_network
from treesnake.loading.options import LoadOptions
from treesnake.loading.smollm import find_gguf
from treesnake.models.tree_network import TreeNetwork

QUESTIONS = (
    "Write a Python function that reverses a linked list.",
    "Explain in a few sentences why the sky is blue.",
    "List the first ten prime numbers and say how to find more.",
    "Translate to German: The weather is nice today, and we go for a walk.",
)
CHUNK = 64


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--files", nargs="+", default=["smollm2"], help="smollm2 is the package's")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")


def measure(arguments: Namespace) -> Result:
    return {
        "windows": arguments.windows,
        "length": arguments.length,
        "files": [_measure_file(name, arguments) for name in arguments.files],
    }


def _measure_file(name: str, arguments: Namespace) -> Result:
    path = str(find_gguf() if name == "smollm2" else name)
    checkpoint = find_checkpoint(path)
    token_ids = checkpoint.tokenizer.encode(_text(), add_special_tokens=False)
    windows = [
        token_ids[start : start + arguments.length]
        for start in range(0, arguments.windows * arguments.length, arguments.length)
    ]
    perplexity: dict[str, float] = {}
    for dtype in ("stored", "float32"):
        network = load_network(checkpoint, LoadOptions(dtype, "cpu")).network
        perplexity[dtype] = _perplexity(_losses(_network_logits(network, w), w) for w in windows)
    if find_spec("llama_cpp") is not None:
        perplexity["llama.cpp"] = _perplexity(_llama_losses(path, windows))
    return {
        "file": path.rsplit("/", 1)[-1],
        "perplexity": {key: round(value, 4) for key, value in perplexity.items()},
        "answers": _compare_answers(path, arguments.tokens),
    }


def _text() -> str:
    return "\n\n".join(topics[name] for name in sorted(topics))


def _perplexity(losses: Iterable[Float[Tensor, " positions"]]) -> float:
    return math.exp(torch.cat(list(losses)).double().mean())


def _losses(
    logits: Float[Tensor, "positions vocab"], window: Sequence[int]
) -> Float[Tensor, " half"]:
    """Returns the losses of the second half of a window, given logits behind all but its last."""
    half = len(window) // 2
    nexts = torch.tensor(window[half:])
    return torch.nn.functional.cross_entropy(logits[half - 1 :], nexts, reduction="none")


def _network_logits(network: TreeNetwork, window: Sequence[int]) -> Float[Tensor, "some vocab"]:
    state = network.new_state()
    rows = []
    for start in range(0, len(window) - 1, CHUNK):
        chunk = window[start : min(start + CHUNK, len(window) - 1)]
        rows.append(state.extend(chunk, range(-1, len(chunk) - 1)))
        state.commit(range(len(chunk)))
    return torch.cat(rows)


def _llama_losses(
    path: str, windows: Sequence[Sequence[int]]
) -> Iterator[Float[Tensor, " positions"]]:
    llama_cpp: Any = import_module("llama_cpp")
    threads = torch.get_num_threads()
    llama = llama_cpp.Llama(
        path,
        n_ctx=len(windows[0]),
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        verbose=False,
    )
    for window in windows:
        llama.reset()
        llama.eval(window[:-1])
        yield _losses(torch.tensor(llama.scores[: len(window) - 1]), window)


def _compare_answers(path: str, num_tokens: int) -> Result:
    """Returns of how many answers all tokens are those of plain decoding."""
    drafting = SpeculativeDecoder.from_pretrained(path)
    plain = SpeculativeDecoder.from_pretrained(path, drafter="none")
    equal = 0
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        answer = drafting.generate(messages, max_new_tokens=num_tokens)
        expected = plain.generate(messages, max_new_tokens=num_tokens)
        equal += answer.token_ids == expected.token_ids
    return {"questions": len(QUESTIONS), "tokens": num_tokens, "equal": equal}


def show(result: Result) -> None:
    for file in result["files"]:
        exact = file["perplexity"]["float32"]
        print_table(
            file["file"],
            ("weights", "perplexity", "against float32"),
            (
                (name, f"{value:.3f}", f"{100 * (value / exact - 1):+.2f} %")
                for name, value in file["perplexity"].items()
            ),
        )
        print(file["answers"])


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
