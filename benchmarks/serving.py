"""What do several texts at once make of a machine, with drafting and without?

    uv run python benchmarks/serving.py --threads 2 --output results/serving.json

1, 2, 4 and 8 texts at once run in an engine, each an answer of `--tokens` tokens to a question of
its own, greedily. Tokens a second are those of all texts together, prompts included. All
numbers of texts and drafters run in turn in every round; medians are reported. No session is kept,
so that every round runs all prompts.
"""

import statistics
from argparse import ArgumentParser, Namespace
from functools import partial

from frame import Result, add_rounds, print_table, run, time_in_turn
from hosting.clients import QUESTIONS

from treesnake import SamplingParams, SpeculativeDecoder
from treesnake.serving.engine import Engine, EngineLimits

NUM_TEXTS = (1, 2, 4, 8)
DRAFTERS = ("auto", "none")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--tokens", type=int, default=64)
    add_rounds(parser, 3)


def measure(arguments: Namespace) -> Result:
    """Measures all at once, so that a machine that becomes slower does so for all."""
    engines: dict[str, Engine] = {}
    for drafter in DRAFTERS:
        decoder = SpeculativeDecoder.from_pretrained(arguments.target, drafter, memory=False)
        limits = EngineLimits(max_num_seqs=max(NUM_TEXTS), cache_bytes=0)
        engines[drafter] = Engine(decoder, limits)
    variants = {
        f"{drafter} {number}": partial(_answer, engine, number, arguments.tokens)
        for drafter, engine in engines.items()
        for number in NUM_TEXTS
    }
    times = time_in_turn(variants, arguments.rounds)
    rates = {
        drafter: {
            str(number): round(
                number * arguments.tokens / statistics.median(times[f"{drafter} {number}"]), 1
            )
            for number in NUM_TEXTS
        }
        for drafter in DRAFTERS
    }
    stats = {drafter: engine.stats for drafter, engine in engines.items()}
    for engine in engines.values():
        engine.close(finish_s=None)
    return {
        "target": arguments.target,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "tokens_per_s": rates,
        "texts_a_pass": {
            drafter: round(each.num_parts / each.num_passes, 2) for drafter, each in stats.items()
        },
        "tokens_a_step": {
            drafter: round(each.num_new_tokens / each.num_steps, 2)
            for drafter, each in stats.items()
        },
    }


def show(result: Result) -> None:
    print_table(
        f"Tokens a second of all texts (and x one text), {result['target']}",
        ["drafter", *(f"{number} texts" for number in NUM_TEXTS)],
        [
            [drafter, *(f"{rate:.1f} ({rate / rates['1']:.2f})" for rate in rates.values())]
            for drafter, rates in result["tokens_per_s"].items()
        ],
    )


def _answer(engine: Engine, num_texts: int, num_tokens: int) -> None:
    """Generates some answers at once, each of the same number of tokens."""
    tickets = [
        engine.submit(
            [{"role": "user", "content": question}],
            SamplingParams(),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
        )
        for question in QUESTIONS[:num_texts]
    ]
    for ticket in tickets:
        ticket.wait()


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
