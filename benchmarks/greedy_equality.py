"""Is greedy output equal to `transformers.generate`, token for token?

    uv run python benchmarks/greedy_equality.py --questions FILE.jsonl ... --output OUT.json

Runs the first turn of every question through transformers' own greedy generate in float32, and
through each engine, plainly and speculatively, with prompt lookup or another drafter. A line is
appended to a log beside the output for every generation, so that a run that was stopped continues,
and a run with another drafter adds to the result. Where tokens differ, the result names the
position and the gap between the two logits.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from facts import facts, read_questions, write_result
from transformers import PreTrainedModel

from treesnake import SpeculativeDecoder
from treesnake.drafters.load import PROMPT_LOOKUP
from treesnake.loading.options import LoadOptions
from treesnake.loading.pretrained import load_pretrained
from treesnake.search.static import StaticSearch
from treesnake.shape import Shape, parse_shape

NEW_TOKENS = 64
REFERENCE = "transformers"


def main() -> None:
    """Runs what is missing and writes the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--engines", nargs="*", default=["native", "generic"])
    parser.add_argument("--shapes", nargs="+", default=["off", "chain(4)", "2x1x1"])
    parser.add_argument("--drafter", default=PROMPT_LOOKUP, help="a name or the folder of a model")
    parser.add_argument("--limit", type=int, help="only so many questions")
    arguments = parser.parse_args()
    questions = read_questions(arguments.questions)[: arguments.limit]
    log = Log(arguments.output.with_suffix(".log.jsonl"))

    pretrained = load_pretrained(arguments.target, LoadOptions(dtype="float32", device="cpu"))
    model, tokenizer = pretrained.model, pretrained.tokenizer
    prompts = {str(question["question_id"]): _encode(tokenizer, question) for question in questions}
    log.run(REFERENCE, prompts, partial(_reference, model))
    for engine in arguments.engines:
        for shape in arguments.shapes:
            decoder = _decoder(arguments.target, arguments.drafter, engine, parse_shape(shape))
            method = _method(engine, shape, arguments.drafter)
            log.run(method, prompts, partial(_generate, decoder))
    write_result(arguments.output, _summary(log, prompts, model))


class Log:
    """The tokens of every generation so far, in a file that only grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.tokens: dict[str, dict[str, list[int]]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                self._note(json.loads(line))

    def run(
        self, method: str, prompts: dict[str, list[int]], generate: Callable[[list[int]], list[int]]
    ) -> None:
        """Generates for the prompts that the method has not seen."""
        for number, (name, prompt) in enumerate(prompts.items()):
            if name in self.tokens.get(method, {}):
                continue
            record = {"method": method, "prompt": name, "tokens": generate(prompt)}
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            self._note(record)
            print(f"\r{method}: {number + 1}/{len(prompts)}", end="", flush=True)
        print()

    def _note(self, record: dict[str, Any]) -> None:
        self.tokens.setdefault(record["method"], {})[record["prompt"]] = record["tokens"]


def _encode(tokenizer: Any, question: dict[str, Any]) -> list[int]:
    messages = [{"role": "user", "content": question["turns"][0]}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


def _reference(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    output = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
    return output[0, len(prompt) :].tolist()


def _method(engine: str, shape: str, drafter: str) -> str:
    """Returns what a run is called; a folder goes by its own name, wherever it is."""
    name = f"{engine} {shape}"
    return name if drafter == PROMPT_LOOKUP else f"{name} {Path(drafter).name}"


def _decoder(target: str, drafter: str, engine: str, shape: Shape) -> SpeculativeDecoder:
    return SpeculativeDecoder.from_pretrained(
        target,
        drafter,
        dtype="float32",
        device="cpu",
        engine=engine,
        search=StaticSearch(shape),
    )


def _generate(decoder: SpeculativeDecoder, prompt: list[int]) -> list[int]:
    return list(decoder.generate(prompt, max_new_tokens=NEW_TOKENS).token_ids)


def _summary(log: Log, prompts: dict[str, list[int]], model: PreTrainedModel) -> dict[str, Any]:
    methods = {}
    for method in log.tokens:
        if method == REFERENCE:
            continue
        different = [
            _difference(name, prompts[name], log.tokens[REFERENCE][name], tokens, model)
            for name, tokens in log.tokens[method].items()
            if name in prompts and tokens != log.tokens[REFERENCE][name]
        ]
        compared = sum(name in prompts for name in log.tokens[method])
        methods[method] = {
            "prompts": compared,
            "equal": compared - len(different),
            "different": different,
        }
        print(f"{method}: {compared - len(different)} of {compared} equal")
    return {"new_tokens": NEW_TOKENS, "dtype": "float32", "facts": facts(), "methods": methods}


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
    main()
