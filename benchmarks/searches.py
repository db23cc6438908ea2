"""Searches on a real pair, interleaved: what do they emit per second, and what do they cost?

    uv run python benchmarks/searches.py --questions spec_bench_report.jsonl --limit 13 \
        --drafter treesnake-smol --dtype stored --tokens 64 --threads 2 \
        --output results/searches.json

Every prompt is decoded by all methods in turn, in an order that rotates from prompt to prompt, and
greedily, so that all emit the same tokens. Searches keep what they learned from prompt to prompt,
as in a server. "self-tuning" begins with the costs that are measured while a pair is loaded,
"calibrated" with those that `treesnake calibrate` measures, "uncalibrated" with none. The last
numbers are the microseconds that a search takes to choose and observe.
"""

import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from frame import Result, add_questions, print_table, read_questions, run

from treesnake import SpeculativeDecoder
from treesnake.calibration import measure_costs
from treesnake.decoder import DecoderSession
from treesnake.evaluation.simulation.comparison import rate, relative_rate
from treesnake.evaluation.simulation.replay import Replayed
from treesnake.evaluation.tasks import Question
from treesnake.outcome import Generation, Step
from treesnake.protocols import SharedSearch, TreeSearch
from treesnake.search.by_name import search_by_name
from treesnake.search.costs import CostTable
from treesnake.shape import Shape

PLAIN = "off"
METHODS = (
    PLAIN,
    "self-tuning",
    "calibrated",
    "uncalibrated",
    "ucb",
    "moving-average",
    "trial",
    "chain(1)",
    "chain(2)",
    "chain(3)",
    "chain(5)",
    "2x1x1",
    "best_first(2, 4, 6)",
)


class Timed:
    """The search of one text, and the seconds that it takes itself."""

    def __init__(self, search: TreeSearch, seconds: list[float]) -> None:
        self._search = search
        self.seconds = seconds

    def choose(self, context_length: int) -> Shape:
        started = time.perf_counter()
        shape = self._search.choose(context_length)
        self.seconds.append(time.perf_counter() - started)
        return shape

    def observe(self, step: Step) -> None:
        started = time.perf_counter()
        self._search.observe(step)
        self.seconds[-1] += time.perf_counter() - started


def add_arguments(parser: ArgumentParser) -> None:
    add_questions(parser)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--drafter", required=True)
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--tokens", type=int, default=96)


def measure(arguments: Namespace) -> Result:
    decoder = SpeculativeDecoder.from_pretrained(
        arguments.target, arguments.drafter, dtype=arguments.dtype, memory=False
    )
    questions = read_questions(arguments)
    prompt = decoder.encode([{"role": "user", "content": questions[0].turns[0]}])
    costs = measure_costs(decoder.pair, prompt)
    searches = {method: _search(method, decoder, costs) for method in arguments.methods}
    search_s: dict[str, list[float]] = {method: [] for method in searches}
    generations = _run(decoder, questions, searches, search_s, arguments.tokens)
    return {
        "target": arguments.target,
        "dtype": arguments.dtype,
        "drafter": Path(arguments.drafter).name,
        "prompts": len(questions),
        "tokens_per_prompt": arguments.tokens,
        "costs": asdict(costs),
        "methods": _summary(generations, search_s, [each.category for each in questions]),
    }


def _search(method: str, decoder: SpeculativeDecoder, costs: CostTable) -> SharedSearch:
    if method == "self-tuning":
        return decoder.search
    if method == "calibrated":
        return search_by_name("self-tuning", costs)
    return search_by_name("self-tuning" if method == "uncalibrated" else method)


def _run(
    decoder: SpeculativeDecoder,
    questions: Sequence[Question],
    searches: dict[str, SharedSearch],
    search_s: dict[str, list[float]],
    num_tokens: int,
) -> dict[str, list[Generation]]:
    methods = list(searches)
    generations: dict[str, list[Generation]] = {method: [] for method in methods}
    for number, question in enumerate(questions):
        prompt = [{"role": "user", "content": question.turns[0]}]
        turn = number % len(methods)
        for method in methods[turn:] + methods[:turn]:
            session = decoder.new_session()
            search = Timed(searches[method].new_session(), search_s[method])
            session = DecoderSession(session.target, session.drafter, search)
            generation = decoder.generate(prompt, max_new_tokens=num_tokens, session=session)
            generations[method].append(generation)
        texts = {generations[method][-1].token_ids for method in methods}
        assert len(texts) == 1, f"question {question.name} has {len(texts)} greedy texts"
        print(f"\r{number + 1}/{len(questions)}", end="", flush=True)
    print()
    return generations


def _summary(
    generations: dict[str, list[Generation]],
    search_s: dict[str, list[float]],
    categories: list[str],
) -> Result:
    plain = [_replayed(each) for each in generations[PLAIN]]
    summary = {}
    for method, made in generations.items():
        mine = [_replayed(each) for each in made]
        steps = [step for each in made for step in each.steps]
        summary[method] = {
            "tokens_per_s": sum(each.tokens for each in mine) / sum(each.seconds for each in mine),
            "speedup": asdict(relative_rate(mine, plain)),
            "tokens_per_step": sum(each.tokens for each in mine) / len(steps),
            "share_off": sum(len(step.tree) == 1 for step in steps) / len(steps),
            "search_us": 1e6 * statistics.median(search_s[method]),
            "search_mean_us": 1e6 * statistics.mean(search_s[method]),
            "speedup_by_category": {
                category: _speedup(mine, plain, categories, category)
                for category in sorted(set(categories))
            },
        }
    return summary


def _speedup(
    mine: list[Replayed], plain: list[Replayed], categories: list[str], category: str
) -> float:
    chosen = [number for number, each in enumerate(categories) if each == category]
    return rate([mine[number] for number in chosen]) / rate([plain[number] for number in chosen])


def _replayed(generation: Generation) -> Replayed:
    return Replayed(generation.num_emitted, generation.decode_s, len(generation.steps))


def show(result: Result) -> None:
    rows = []
    for method, numbers in result["methods"].items():
        speedup = numbers["speedup"]
        rows.append(
            (
                method,
                f"{numbers['tokens_per_s']:.1f}",
                f"{speedup['value']:.3f}",
                f"{speedup['low']:.3f}-{speedup['high']:.3f}",
                f"{numbers['tokens_per_step']:.2f}",
                f"{numbers['share_off']:.0%}",
                f"{numbers['search_us']:.0f} ({numbers['search_mean_us']:.0f})",
            )
        )
    heads = ("search", "tokens/s", "speed-up", "95 %", "tokens/step", "off", "search, us")
    print_table("greedy", heads, rows)


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
