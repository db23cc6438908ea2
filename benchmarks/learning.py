"""Does a drafter that goes on learning guess better, by how many tokens were served?

    uv run python benchmarks/learning.py --served gsm8k.jsonl --not-served 16
        --targets smollm2 qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --tokens 38000 9500
        --questions spec_bench_report.jsonl --per-category 2 --output results/learning.json

A target answers questions, and its drafter learns from the answers in turn, from all of them
whatever that takes. At some numbers of tokens it is tried on answers that were not served: to the
last questions of the same file, and to others. What counts are tokens a step, in the drafter's own
tokens, of a chain of four over the first 64 tokens: a step goes on for as long as the drafter's
first choice is what the answer says. So this needs no quiet machine. The seconds are those of the
machine as it is.

Answers are greedy and made eight at once. They can be kept in a folder (`--answers`), so that
another run goes on with them.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path

from frame import Result, print_table, run

from treesnake import SamplingParams, SpeculativeDecoder
from treesnake.conversation import user_message
from treesnake.drafters.learner import Learner
from treesnake.drafters.learning import reader_of
from treesnake.drafters.output_steps import Places
from treesnake.drafters.said_texts import SaidText, TextReader
from treesnake.evaluation.tasks import Question, load_questions
from treesnake.models.output_layer import OutputLayer
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.serving.engine import Engine

POINTS = (0, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
"""Tokens that were served when the drafter is tried."""

NUM_TRIED, DEPTH, AT_ONCE, MOST_PROMPT = 64, 4, 8, 1000
GREEDY = SamplingParams()


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--targets", nargs="+", required=True)
    parser.add_argument("--tokens", type=int, nargs="+", required=True, help="served, by target")
    parser.add_argument("--served", required=True, help="questions that are answered, JSONL")
    parser.add_argument("--questions", required=True, help="others, that are not served, JSONL")
    parser.add_argument("--per-category", type=int, default=3)
    parser.add_argument("--not-served", type=int, default=40, help="the last of those answered")
    parser.add_argument("--per-answer", type=int, default=128)
    parser.add_argument("--answers", type=Path, help="a folder where answers are kept")


def measure(arguments: Namespace) -> Result:
    served = load_questions(arguments.served)
    others = load_questions(arguments.questions, per_category=arguments.per_category)
    result: Result = {"depth": DEPTH, "targets": {}}
    for target, num_tokens in zip(arguments.targets, arguments.tokens, strict=True):
        name, decoder = Path(target).stem, SpeculativeDecoder.from_pretrained(target)
        answers = Answers(decoder, arguments.answers, name)
        said = list(answers.to(served, "served", arguments.per_answer, num_tokens))
        said, held_back = said[: -arguments.not_served], said[-arguments.not_served :]
        tried = {"of the same kind": held_back}
        tried["others"] = list(answers.to(others, "others", NUM_TRIED, num_tokens))
        result["targets"][name] = {"points": _learn(decoder, said, tried)}
    return result


class Answers:
    """A target's greedy answers, those that are kept first."""

    def __init__(self, decoder: SpeculativeDecoder, folder: Path | None, name: str) -> None:
        self._decoder, self._folder, self._name = decoder, folder, name

    def to(
        self, questions: Sequence[Question], kind: str, most: int, num_tokens: int
    ) -> Iterator[SaidText]:
        """Yields answers until there are so many tokens."""
        path = self._folder and self._folder / f"{self._name}-{kind}.jsonl"
        known = _kept(path)
        prompts = {each.name: self._prompt(each) for each in questions}
        names = [name for name, prompt in prompts.items() if len(prompt) <= MOST_PROMPT]
        engine: Engine | None = None
        num_said = 0
        for begin in range(0, len(names), AT_ONCE):
            if num_said >= num_tokens:
                break
            group = names[begin : begin + AT_ONCE]
            unknown = [name for name in group if name not in known]
            if unknown:
                engine = engine or Engine(self._decoder)
                known |= _ask(engine, {name: prompts[name] for name in unknown}, most, path)
            for name in group:
                num_said += len(known[name])
                yield _said(prompts[name], known[name])
        if engine:
            engine.close(finish_s=0)

    def _prompt(self, question: Question) -> Prompt:
        return self._decoder.encode([user_message(question.turns[0], ())])


def _kept(path: Path | None) -> dict[str, list[int]]:
    lines = path.read_text().splitlines() if path and path.exists() else []
    rows = map(json.loads, lines)
    return {row["question"]: row["answer"] for row in rows}


def _ask(
    engine: Engine, prompts: dict[str, Prompt], most: int, path: Path | None
) -> dict[str, list[int]]:
    tickets = {
        name: engine.submit(prompt, GREEDY, max_new_tokens=most) for name, prompt in prompts.items()
    }
    answers = {name: list(ticket.wait().token_ids) for name, ticket in tickets.items()}
    if path:
        with path.open("a") as file:
            for name, answer in answers.items():
                file.write(json.dumps({"question": name, "answer": answer}) + "\n")
    return answers


def _said(prompt: Prompt, answer: Sequence[int]) -> SaidText:
    """Returns an answer as a session saw it that wrote it greedily."""
    tokens = [prompt.token_ids[-1], *answer[:-1]]
    return SaidText(prompt, tokens, [{token: 1.0} for token in answer], 1.0)


def _learn(
    decoder: SpeculativeDecoder, said: Sequence[SaidText], tried: dict[str, list[SaidText]]
) -> list[Result]:
    """Teaches a drafter, and tries it at each point and at the end."""
    assert isinstance(decoder.pair, Pair)
    reader = reader_of(decoder.pair.drafter)
    learner = Learner(reader, time_share=inf)
    seen = {name: [_places(reader, text) for text in texts] for name, texts in tried.items()}
    points = [_try(learner, reader, seen, 0)]
    num_served = 0
    for number, text in enumerate(said, 1):
        before, num_served = num_served, num_served + len(text.token_ids)
        learner.add(text, 1.0)
        learner.learn_if_due()
        if number == len(said) or any(before < point <= num_served for point in POINTS):
            points.append(_try(learner, reader, seen, num_served))
    return points


def _places(reader: TextReader, text: SaidText) -> Places:
    read, network = reader.read(text), reader.network
    assert isinstance(network, OutputLayer)
    return Places.of(read, network.hidden_states(read.token_ids))[:NUM_TRIED]


def _try(
    learner: Learner, reader: TextReader, tried: dict[str, list[Places]], num_served: int
) -> Result:
    found: Result = {"tokens_served": num_served}
    assert isinstance(reader.network, OutputLayer)
    weight = reader.network.output_weight()
    for name, texts in tried.items():
        num_tokens = num_steps = num_right = 0
        for places in texts:
            is_right = ((places.hidden @ weight.T).argmax(1) == places.wanted[:, 0]).tolist()
            num_tokens += len(is_right)
            num_right += sum(is_right)
            num_steps += _count_steps(is_right)
        found[name] = {
            "num_tokens": num_tokens,
            "right": round(num_right / num_tokens, 4),
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
