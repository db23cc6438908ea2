"""Does a drafter that goes on learning guess better, by how many tokens were served?

    uv run python benchmarks/learning.py --served prompts.jsonl
        --targets smollm2 qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --tokens 200000 200000
        --questions spec_bench_report.jsonl --per-category 4 --output results/learning.json

A target answers prompts of many kinds (recipes/treesnake-smol/prompts.py), and its drafter learns
from the answers in turn, from all of them whatever that takes. At some numbers of tokens it is
tried on answers that were not served: to the last prompts of the same file, and to others. What
counts are tokens a step, in the drafter's own tokens, of a chain of four over the first 64 tokens:
a step goes on for as long as the drafter's first choice is what the answer says. So this needs no
quiet machine. The seconds are those of the machine as it is.

Answers are greedy, and many share each pass. They can be kept in a folder (`--answers`), so that
another run goes on with them. If a target has not said enough after some time (`--minutes`), its
drafter learns from what there is.
"""

import json
from argparse import ArgumentParser, Namespace
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from pathlib import Path
from time import perf_counter

from frame import Result, print_table, run
from jaxtyping import Float
from torch import Tensor

from treesnake import SpeculativeDecoder
from treesnake.conversation import user_message
from treesnake.drafters.learner import Learner
from treesnake.drafters.learning import reader_of
from treesnake.drafters.output_steps import Places
from treesnake.drafters.said_texts import SaidText, TextReader
from treesnake.evaluation.tasks import load_questions
from treesnake.json_lines import json_line
from treesnake.models.output_layer import OutputLayer
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.targets.network import NetworkTargetModel
from treesnake.training.answering import AnswerOptions, answer
from treesnake.training.answers import read_prompts

POINTS = (0, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
"""Tokens that were served when the drafter is tried."""

LONGEST_SERVED, LONGEST_TRIED = 256, 1000
NUM_TRIED, DEPTH, AT_ONCE = 64, 4, 24


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--targets", nargs="+", required=True)
    parser.add_argument("--tokens", type=int, nargs="+", required=True, help="served, by target")
    parser.add_argument("--served", required=True, help="prompts that are answered, JSONL")
    parser.add_argument("--questions", required=True, help="others, that are not served, JSONL")
    parser.add_argument("--per-category", type=int, default=3)
    parser.add_argument("--not-served", type=int, default=128, help="the last of these prompts")
    parser.add_argument("--per-answer", type=int, default=128)
    parser.add_argument("--answers", type=Path, help="a folder where answers are kept")
    parser.add_argument("--minutes", type=float, default=inf, help="of answering, for each target")


def measure(arguments: Namespace) -> Result:
    prompts = read_prompts([Path(arguments.served)])
    held_back = prompts[-arguments.not_served :]
    questions = load_questions(arguments.questions, per_category=arguments.per_category)
    others = [question.turns[0] for question in questions]
    result: Result = {"depth": DEPTH, "targets": {}}
    for target, num_tokens in zip(arguments.targets, arguments.tokens, strict=True):
        name, decoder = Path(target).stem, SpeculativeDecoder.from_pretrained(target)
        answers = Answers(decoder, arguments.answers, name)
        tried = {
            "of the same kind": list(answers.to(held_back, "held-back", NUM_TRIED)),
            "others": list(answers.to(others, "others", NUM_TRIED, LONGEST_TRIED)),
        }
        served = answers.to(prompts[: -arguments.not_served], "served", arguments.per_answer)
        said = _first(served, num_tokens, perf_counter() + 60 * arguments.minutes)
        result["targets"][name] = {"points": _learn(decoder, said, tried)}
    return result


class Answers:
    """A target's greedy answers, those that are kept first."""

    def __init__(self, decoder: SpeculativeDecoder, folder: Path | None, name: str) -> None:
        assert isinstance(decoder.pair, Pair)
        assert isinstance(decoder.pair.target, NetworkTargetModel)
        self._decoder, self._network = decoder, decoder.pair.target.network
        self._folder, self._name = folder, name

    def to(
        self, asked: Iterable[str], kind: str, most: int, longest: int = LONGEST_SERVED
    ) -> Iterator[SaidText]:
        """Yields answers to those that are short enough, in their order."""
        path = self._folder and self._folder / f"{self._name}-{kind}.jsonl"
        known = _kept(path)
        encoded = ((each, self._decoder.encode([user_message(each, ())])) for each in asked)
        short = (pair for pair in encoded if len(pair[1]) <= longest)
        while group := dict(islice(short, AT_ONCE)):
            unknown = {each: prompt for each, prompt in group.items() if each not in known}
            if unknown:
                known |= self._ask(unknown, most, path)
            yield from (_said(prompt, known[each]) for each, prompt in group.items())

    def _ask(
        self, prompts: dict[str, Prompt], most: int, path: Path | None
    ) -> dict[str, list[int]]:
        options = AnswerOptions(most, 0.0, 1, tuple(self._decoder.end_token_ids))
        token_ids = [prompt.token_ids for prompt in prompts.values()]
        made = answer(self._network, token_ids, options, seed=0)
        answers = {each: said.tokens.tolist() for each, said in zip(prompts, made, strict=True)}
        if path:
            with path.open("ab") as file:
                for each, said in answers.items():
                    file.write(json_line({"prompt": each, "answer": said}))
        print(f"{sum(map(len, answers.values()))} tokens", flush=True)
        return answers


def _kept(path: Path | None) -> dict[str, list[int]]:
    if path is None or not path.exists():
        return {}
    rows = map(json.loads, path.read_text().splitlines())
    return {row["prompt"]: row["answer"] for row in rows}


def _said(prompt: Prompt, answer: Sequence[int]) -> SaidText:
    """Returns an answer as a session saw it that wrote it greedily."""
    tokens = [prompt.token_ids[-1], *answer[:-1]]
    return SaidText(prompt, tokens, [{token: 1.0} for token in answer], 1.0)


def _first(texts: Iterable[SaidText], num_tokens: int, until: float) -> list[SaidText]:
    """Returns as many of the first texts as have so many tokens, or are there in time."""
    taken, num_taken = list[SaidText](), 0
    for text in texts:
        if num_taken >= num_tokens or perf_counter() > until:
            break
        taken.append(text)
        num_taken += len(text.token_ids)
    return taken


def _learn(
    decoder: SpeculativeDecoder, said: Sequence[SaidText], tried: dict[str, list[SaidText]]
) -> list[Result]:
    """Teaches a drafter, and tries it at each point and at the end."""
    assert isinstance(decoder.pair, Pair)
    reader = reader_of(decoder.pair.drafter)
    learner = Learner(reader, time_share=inf)
    seen = {name: [Trial.of(reader, text) for text in texts] for name, texts in tried.items()}
    points = [_try(learner, reader, seen, 0)]
    num_served = 0
    for number, text in enumerate(said, 1):
        before, num_served = num_served, num_served + len(text.token_ids)
        learner.add(text, 1.0)
        learner.learn()
        if number == len(said) or any(before < point <= num_served for point in POINTS):
            points.append(_try(learner, reader, seen, num_served))
    return points


@dataclass(frozen=True)
class Trial:
    """An answer that the drafter is tried on.

    Attributes:
        places: where its next token is one that the drafter can say.
        numbers: which tokens of the answer those are; the others it cannot guess.
    """

    places: Places
    numbers: list[int]

    @classmethod
    def of(cls, reader: TextReader, text: SaidText) -> "Trial":
        read, network = reader.read(text), reader.network
        assert isinstance(network, OutputLayer)
        places = Places.of(read, network.hidden_states(read.token_ids))
        numbers = (read.places - read.places[0]).tolist()
        num_tried = bisect_left(numbers, NUM_TRIED)
        return cls(places[:num_tried], numbers[:num_tried])

    def guesses(self, weight: Float[Tensor, "outputs hidden"]) -> list[bool]:
        """Tells for each token whether it is the drafter's first choice."""
        is_right = [False] * (self.numbers[-1] + 1)
        best = (self.places.hidden @ weight.T).argmax(1)
        for number, right in zip(self.numbers, best == self.places.wanted[:, 0], strict=True):
            is_right[number] = bool(right)
        return is_right


def _try(
    learner: Learner, reader: TextReader, tried: dict[str, list[Trial]], num_served: int
) -> Result:
    found: Result = {"tokens_served": num_served}
    assert isinstance(reader.network, OutputLayer)
    weight = reader.network.output_weight()
    for name, trials in tried.items():
        guesses = [trial.guesses(weight) for trial in trials]
        num_tokens, num_steps = sum(map(len, guesses)), sum(map(_count_steps, guesses))
        found[name] = {
            "num_tokens": num_tokens,
            "right": round(sum(map(sum, guesses)) / num_tokens, 4),
            "tokens_per_step": round(num_tokens / num_steps, 4),
        }
    report = learner.report
    found |= {
        "tokens_learned_from": report.num_places,
        "updates": report.num_updates,
        "updates_kept": report.num_kept,
        "learning_us_per_token": round(report.learning_s / max(report.num_places, 1) * 1e6),
    }
    print(found, flush=True)
    return found


def _count_steps(is_right: Sequence[bool]) -> int:
    """Counts the steps of a chain over a text: each gives what is right, and one token more."""
    steps = place = 0
    while place < len(is_right):
        drafted = is_right[place : place + DEPTH]
        place += 1 + next((n for n, right in enumerate(drafted) if not right), len(drafted))
        steps += 1
    return steps


def show(result: Result) -> None:
    for target, found in result["targets"].items():
        print_table(
            f"Tokens a step of a chain of {result['depth']}, {target}",
            ["tokens served", "of the same kind", "others", "updates that stayed"],
            [
                [
                    f"{point['tokens_served']:,}",
                    f"{point['of the same kind']['tokens_per_step']:.3f}",
                    f"{point['others']['tokens_per_step']:.3f}",
                    f"{point['updates_kept']} of {point['updates']}",
                ]
                for point in found["points"]
            ],
        )


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
