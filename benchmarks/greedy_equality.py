"""Is greedy output equal to `transformers.generate`, token for token?

    uv run python benchmarks/greedy_equality.py --questions FILE.jsonl ... \
        --drafters prompt-lookup FOLDER --output results/greedy_equality.json

Runs the first turn of every question through transformers' own greedy generate in float32, and
through each engine, plainly and speculatively, with each drafter. Where tokens differ, the result
names the position and the gap between the two logits.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from frame import Result, add_questions, read_questions, run
from transformers import PreTrainedModel

from treesnake import SpeculativeDecoder
from treesnake.drafters.load import NO_DRAFTER, PROMPT_LOOKUP
from treesnake.evaluation.tasks import Question
from treesnake.loading.options import LoadOptions
from treesnake.loading.pretrained import load_pretrained

NEW_TOKENS = 64

Texts = dict[str, list[int]]
"""Token ids by the name of the question: of its prompt, or of an answer."""


def add_arguments(parser: ArgumentParser) -> None:
    add_questions(parser)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--engines", nargs="*", default=["native", "generic"])
    parser.add_argument("--shapes", nargs="*", default=["chain(4)", "2x1x1"])
    parser.add_argument(
        "--drafters", nargs="*", default=[PROMPT_LOOKUP], help="names, or folders of models"
    )


def measure(arguments: Namespace) -> Result:
    pretrained = load_pretrained(arguments.target, LoadOptions(dtype="float32", device="cpu"))
    model, tokenizer = pretrained.model, pretrained.tokenizer
    questions = read_questions(arguments)
    prompts = {question.name: _encode(tokenizer, question) for question in questions}
    expected = {name: _reference(model, prompt) for name, prompt in prompts.items()}
    methods = {}
    for engine in arguments.engines:
        settings = [(NO_DRAFTER, "off")]
        settings += [(each, shape) for each in arguments.drafters for shape in arguments.shapes]
        for drafter, shape in settings:
            decoder = SpeculativeDecoder.from_pretrained(
                arguments.target,
                drafter,
                dtype="float32",
                device="cpu",
                engine=engine,
                search=shape,
            )
            name = _method(engine, shape, drafter)
            methods[name] = _compare(decoder, prompts, expected, model)
            print(f"{name}: {methods[name]['equal']} of {methods[name]['prompts']} equal")
    return {"new_tokens": NEW_TOKENS, "dtype": "float32", "methods": methods}


def _encode(tokenizer: Any, question: Question) -> list[int]:
    messages = [{"role": "user", "content": question.turns[0]}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


def _reference(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    output = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
    return output[0, len(prompt) :].tolist()


def _method(engine: str, shape: str, drafter: str) -> str:
    """Returns what a run is called; a folder goes by its own name, wherever it is."""
    name = f"{engine} {shape}"
    return name if drafter in (NO_DRAFTER, PROMPT_LOOKUP) else f"{name} {Path(drafter).name}"


def _compare(
    decoder: SpeculativeDecoder, prompts: Texts, expected: Texts, model: PreTrainedModel
) -> Result:
    """Answers all prompts; returns how many answers are equal, and where the others differ."""
    different = []
    for number, (name, prompt) in enumerate(prompts.items(), 1):
        tokens = decoder.generate(prompt, max_new_tokens=NEW_TOKENS).token_ids
        if list(tokens) != expected[name]:
            different.append(_difference(name, prompt, expected[name], tokens, model))
        print(f"\r{number}/{len(prompts)} ", end="", flush=True)
    return {
        "prompts": len(prompts),
        "equal": len(prompts) - len(different),
        "different": different,
    }


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
    run(__doc__, measure, add_arguments=add_arguments)
