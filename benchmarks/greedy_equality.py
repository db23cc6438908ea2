"""Is greedy output equal to `transformers.generate`, token for token?

    uv run python benchmarks/greedy_equality.py --questions FILE.jsonl ... \
        --output results/greedy_equality.json

Runs the first turn of every question through transformers' own greedy generate in float32, and
through each method: an engine, a drafter, and a search or shape. Where tokens differ, the result
names the position and the gap between the two logits.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from frame import Result, add_questions, read_questions, run
from transformers import PreTrainedModel

from treesnake import SpeculativeDecoder
from treesnake.evaluation.tasks import Question
from treesnake.loading.options import LoadOptions
from treesnake.loading.pretrained import load_pretrained

NEW_TOKENS = 64
METHODS = (
    "native none off",
    "native treesnake-smol chain(4)",
    "native auto self-tuning",
    "generic prompt-lookup chain(4)",
)
"""Engine, drafter and search."""

Texts = dict[str, list[int]]
"""Token ids by the name of the question: of its prompt, or of an answer."""


def add_arguments(parser: ArgumentParser) -> None:
    add_questions(parser)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the questions")


def measure(arguments: Namespace) -> Result:
    """Lets each process compare its share of the questions, with its share of the threads."""
    questions = read_questions(arguments)
    threads = max(arguments.threads // arguments.workers, 1)
    compare = partial(_compare_all, arguments.target, tuple(arguments.methods), threads)
    shares = [questions[number :: arguments.workers] for number in range(arguments.workers)]
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as processes:
        found = list(processes.map(compare, shares))
    methods = {
        name: {
            "prompts": len(questions),
            "equal": sum(share[name]["equal"] for share in found),
            "different": [each for share in found for each in share[name]["different"]],
        }
        for name in arguments.methods
    }
    return {"new_tokens": NEW_TOKENS, "dtype": "float32", "methods": methods}


def show(result: Result) -> None:
    for name, entry in result["methods"].items():
        print(f"{name}: {entry['equal']} of {entry['prompts']} equal")


def _compare_all(
    target: str, methods: Sequence[str], threads: int, questions: Sequence[Question]
) -> Result:
    torch.set_num_threads(threads)
    pretrained = load_pretrained(target, LoadOptions(dtype="float32", device="cpu"))
    model, tokenizer = pretrained.model, pretrained.tokenizer
    prompts = {question.name: _encode(tokenizer, question) for question in questions}
    expected = {}
    for number, (name, prompt) in enumerate(prompts.items(), 1):
        expected[name] = _reference(model, prompt)
        print(f"transformers: {number}/{len(prompts)}", flush=True)
    compared = {}
    for method in methods:
        engine, drafter, search = method.split()
        decoder = SpeculativeDecoder.from_pretrained(
            target, drafter, dtype="float32", device="cpu", engine=engine, search=search
        )
        compared[method] = _compare(decoder, prompts, expected, model)
        print(f"{method}: {compared[method]['equal']} of {len(prompts)} equal", flush=True)
    return compared


def _encode(tokenizer: Any, question: Question) -> list[int]:
    messages = [{"role": "user", "content": question.turns[0]}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


def _reference(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    output = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
    return output[0, len(prompt) :].tolist()


def _compare(
    decoder: SpeculativeDecoder, prompts: Texts, expected: Texts, model: PreTrainedModel
) -> Result:
    """Answers all prompts; returns how many answers are equal, and where the others differ."""
    different = []
    for name, prompt in prompts.items():
        tokens = decoder.generate(prompt, max_new_tokens=NEW_TOKENS).token_ids
        if list(tokens) != expected[name]:
            different.append(_difference(name, prompt, expected[name], tokens, model))
    return {"equal": len(prompts) - len(different), "different": different}


def _difference(
    name: str,
    prompt: Sequence[int],
    expected: Sequence[int],
    actual: Sequence[int],
    model: PreTrainedModel,
) -> dict[str, Any]:
    """Returns where two texts part, and how far apart the reference held the two tokens there."""
    pairs = zip(expected, actual, strict=False)
    position = next(
        (i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(actual))
    )
    difference: dict[str, Any] = {"prompt": name, "position": position}
    if position < min(len(expected), len(actual)):
        with torch.no_grad():
            text = torch.tensor([[*prompt, *expected[:position]]])
            logits = model(text).logits[0, -1]
        gap = float(logits[expected[position]] - logits[actual[position]])
        difference |= {"tokens": [expected[position], actual[position]], "logit_gap": gap}
    return difference


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
