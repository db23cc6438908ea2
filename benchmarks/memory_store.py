"""What does a memory of earlier texts add to lookup in the text itself, and to the default pair?

    uv run python benchmarks/memory_store.py --threads 2
        --questions spec_bench_report.jsonl --per-category 4 --output results/memory_store.json

Three things. The questions, each once and in one order, first 64 tokens, greedily and at a
temperature of 0.7: tokens a step and seconds, for both halves and along the way. A memory begins
empty and holds the answers to the questions before. Repetitive work from
recipes/bench/repetitive_work.jsonl, likewise; samples at 0.7, the rest greedily. And what adding
and looking up take, by the number of tokens that are stored: text of ever new words and of phrases
that return.
"""

import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from time import perf_counter

import numpy as np
from frame import Result, print_table, run
from numpy.typing import NDArray

from treesnake import SamplingParams, SpeculativeDecoder
from treesnake.conversation import user_message
from treesnake.evaluation.tasks import Question, load_questions
from treesnake.memory.text_memory import MOST_AGREEING, TOKEN_BYTES, TextMemory
from treesnake.outcome import Generation

DRAFTERS = {"lookup": "prompt-lookup", "default": "auto"}
SAMPLINGS = {"greedy": SamplingParams(), "temperature 0.7": SamplingParams(temperature=0.7)}
WORK = Path(__file__).parent.parent / "recipes" / "bench" / "repetitive_work.jsonl"
SAMPLED_WORK = "samples of one question"
NUM_CURVE = 6
"""Points of a curve over the tokens served."""

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
PIECE, NUM_PIECES, NUM_LOOKUPS, DEPTH = 64, 100, 2000, 16
MOST_AT_ONCE = 1 << 16
VOCAB_SIZE, NUM_PHRASES, PHRASE = 49152, 20_000, 8


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--questions", required=True)
    parser.add_argument("--per-category", type=int)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--work-tokens", type=int, default=128)
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="tokens stored at most")


@dataclass
class Method:
    """A decoder, perhaps with a memory."""

    decoder: SpeculativeDecoder
    memory: TextMemory | None

    def answer(self, question: Question, params: SamplingParams, num_tokens: int) -> Generation:
        chosen = False if self.memory is None else self.memory
        session = self.decoder.new_session(memory=chosen)
        asked = [user_message(question.turns[0], ())]
        return self.decoder.generate(asked, params, max_new_tokens=num_tokens, session=session)


def measure(arguments: Namespace) -> Result:
    questions = load_questions(arguments.questions, per_category=arguments.per_category)
    work = load_questions(str(WORK))
    pairs = {
        name: SpeculativeDecoder.from_pretrained(arguments.target, drafter, memory=False)
        for name, drafter in DRAFTERS.items()
    }
    result: Result = {"target": arguments.target, "num_questions": len(questions)}
    result["structure"] = _structure(arguments.largest)
    for name, params in SAMPLINGS.items():
        result[name] = _in_turn(pairs, questions, params, arguments.tokens)
    result["repetitive work"] = {
        category: _in_turn(
            pairs,
            list(group),
            SAMPLINGS["temperature 0.7" if category == SAMPLED_WORK else "greedy"],
            arguments.work_tokens,
        )
        for category, group in groupby(work, key=lambda question: question.category)
    }
    return result


def _in_turn(
    pairs: dict[str, SpeculativeDecoder],
    questions: Sequence[Question],
    params: SamplingParams,
    num_tokens: int,
) -> Result:
    """Runs all methods on a question before the next question."""
    methods = {
        name + ending: Method(_fresh(loaded), memory)
        for name, loaded in pairs.items()
        for ending, memory in (("", None), (" + memory", TextMemory()))
    }
    answers: dict[str, list[Generation]] = {name: [] for name in methods}
    for number, question in enumerate(questions):
        for name in _rotated(list(methods), number):
            answers[name].append(methods[name].answer(question, params, num_tokens))
    return {name: _summary(made) for name, made in answers.items()}


def _fresh(decoder: SpeculativeDecoder) -> SpeculativeDecoder:
    """Returns a decoder of the same pair whose search has learned nothing."""
    return SpeculativeDecoder(
        decoder.pair, tokenizer=decoder.tokenizer, end_token_ids=decoder.end_token_ids
    )


def _rotated(names: list[str], number: int) -> list[str]:
    start = number % len(names)
    return [*names[start:], *names[:start]]


def _summary(answers: Sequence[Generation]) -> Result:
    half = len(answers) // 2
    size = max(len(answers) // NUM_CURVE, 1)
    parts = [answers[begin : begin + size] for begin in range(0, len(answers), size)]
    served = [
        sum(made.num_emitted for made in answers[: (number + 1) * size])
        for number in range(len(parts))
    ]
    return {
        "first half": _rates(answers[:half]),
        "second half": _rates(answers[half:]),
        "behind the first": _rates(answers[1:]),
        "curve": [
            {"tokens_served": tokens, **_rates(part)}
            for tokens, part in zip(served, parts, strict=True)
        ],
    }


def _rates(answers: Sequence[Generation]) -> Result:
    num_tokens = sum(made.num_emitted for made in answers)
    num_steps = sum(len(made.steps) for made in answers)
    seconds = sum(step.seconds.work_s for made in answers for step in made.steps)
    return {
        "num_tokens": num_tokens,
        "tokens_per_step": round(num_tokens / num_steps, 3),
        "decoding_s": round(seconds, 3),
        "prefill_s": round(sum(made.prefill_s for made in answers), 3),
    }


def _structure(largest: int) -> Result:
    """Measures a memory that holds more and more."""
    memory = TextMemory(largest * TOKEN_BYTES)
    chance = np.random.default_rng(0)
    phrases = chance.integers(VOCAB_SIZE, size=(NUM_PHRASES, PHRASE))
    found: Result = {}
    for size in (size for size in SIZES if size <= largest):
        text: list[int] = []
        while len(memory) + NUM_PIECES * (PIECE + 1) < size:
            text = _text(chance, phrases, min(MOST_AT_ONCE, size - len(memory)))
            memory.add(text)
        adding, lookups, places = [], [], []
        pieces = _text(chance, phrases, NUM_PIECES * PIECE)
        for begin in range(0, len(pieces), PIECE):
            begun = perf_counter()
            memory.add(pieces[begin : begin + PIECE])
            adding.append(perf_counter() - begun)
        for end in chance.integers(MOST_AGREEING, len(text), size=NUM_LOOKUPS).tolist():
            context = text[end - MOST_AGREEING : end]
            begun = perf_counter()
            recalled = memory.recall(context, DEPTH)
            lookups.append(perf_counter() - begun)
            places.append(len(recalled.agreements))
        found[str(size)] = {
            "add_us_per_token": round(statistics.median(adding) / PIECE * 1e6, 2),
            "lookup_us": round(statistics.median(lookups) * 1e6, 1),
            "lookup_p99_us": round(sorted(lookups)[len(lookups) * 99 // 100] * 1e6, 1),
            "mean_places": round(statistics.mean(places), 1),
        }
        print(f"{size} tokens: {found[str(size)]}", flush=True)
    return {"bytes_per_token": TOKEN_BYTES, "num_bytes": memory.num_bytes, "by_tokens": found}


def _text(chance: np.random.Generator, phrases: NDArray[np.int64], num_tokens: int) -> list[int]:
    """Returns phrases that return, by Zipf's law, between others that do not."""
    num_phrases = -(-num_tokens // PHRASE)
    text = chance.integers(VOCAB_SIZE, size=(num_phrases, PHRASE))
    returns = chance.random(num_phrases) < 0.5
    text[returns] = phrases[(chance.zipf(1.3, size=int(returns.sum())) - 1) % NUM_PHRASES]
    return text.reshape(-1)[:num_tokens].tolist()


def show(result: Result) -> None:
    parts = {name: result[name] for name in SAMPLINGS} | result["repetitive work"]
    print_table(
        f"Tokens a step (and ms a token), {result['target']}",
        ["", "method", "first half", "second half", "behind the first"],
        [
            [
                name,
                method,
                *(_cell(row[half]) for half in ("first half", "second half", "behind the first")),
            ]
            for name, methods in parts.items()
            for method, row in methods.items()
        ],
    )


def _cell(rates: Result) -> str:
    ms = rates["decoding_s"] / rates["num_tokens"] * 1e3
    return f"{rates['tokens_per_step']:.2f} ({ms:.2f})"


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
