"""Does anybody wait for a drafter that learns? The same answers with learning off and on, in turn.

    uv run python benchmarks/learning_time.py --threads 2 --questions spec_bench_tune.jsonl
        --targets smollm2 qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
        --output results/learning_time.json

Two decoders share a target, and each has a drafter of its own; one of those learns. Both answer a
question before the next one, and who comes first changes with every question. Samples have a seed,
so both write the same texts. No question is asked twice, since an answer that was learned from
would come faster than a new one. Reported are seconds with learning over seconds without: per
token while a text is decoded, and of whole calls, which hold the prompt and whatever is done before
they return. Intervals are of a bootstrap over questions. Rounds are parts of the questions.
"""

import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from frame import Result, add_questions, print_table, read_questions, run

from treesnake import Pair, SamplingParams, SpeculativeDecoder
from treesnake.conversation import user_message
from treesnake.evaluation.bootstrap import bootstrap_ratio
from treesnake.outcome import Generation

TEMPERATURES = {"greedy": 0.0, "temperature 0.7": 0.7}
OFF, ON = "off", "on"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--targets", nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4, help="parts of the questions")
    add_questions(parser, 32)


def measure(arguments: Namespace) -> Result:
    asked = [question.turns[0] for question in read_questions(arguments)]
    targets: Result = {}
    for target in arguments.targets:
        targets[Path(target).stem] = {
            name: _in_turn(target, asked, temperature, arguments)
            for name, temperature in TEMPERATURES.items()
        }
    return {"tokens": arguments.tokens, "questions": len(asked), "targets": targets}


@dataclass(frozen=True)
class Answer:
    """An answer and the seconds of the whole call."""

    made: Generation
    seconds: float

    @property
    def pause_s(self) -> float:
        """What the call took beside reading the prompt and decoding."""
        return self.seconds - self.made.prefill_s - self.made.decode_s


Answers = Mapping[str, Sequence[Answer]]
"""With learning off and on, in the order of the questions."""


def _in_turn(target: str, asked: Sequence[str], temperature: float, arguments: Namespace) -> Result:
    learning = SpeculativeDecoder.from_pretrained(target, learn=True)
    other = SpeculativeDecoder.from_pretrained(target)
    assert isinstance(learning.pair, Pair)
    assert isinstance(other.pair, Pair)
    shared = Pair(learning.pair.target, other.pair.drafter)
    decoders = {OFF: other.with_pair(shared), ON: learning}
    for decoder in decoders.values():
        decoder.generate("The sky", SamplingParams(temperature), max_new_tokens=16)
    answers: dict[str, list[Answer]] = {name: [] for name in decoders}
    for number, question in enumerate(asked):
        params = SamplingParams(temperature, seed=number)
        for name in (OFF, ON) if number % 2 else (ON, OFF):
            begun = perf_counter()
            made = decoders[name].generate(
                [user_message(question, ())], params, max_new_tokens=arguments.tokens
            )
            answers[name].append(Answer(made, perf_counter() - begun))
    assert learning.learner is not None
    report = learning.learner.report
    found = {
        **_ratios(answers),
        "rounds": [
            _ratios({name: part[begin :: arguments.rounds] for name, part in answers.items()})
            for begin in range(arguments.rounds)
        ],
        "methods": {name: _numbers(made) for name, made in answers.items()},
        "equal_texts": sum(
            off.made.token_ids == on.made.token_ids
            for off, on in zip(*answers.values(), strict=True)
        ),
        "learning": asdict(report),
    }
    print(target, found, flush=True)
    return found


def _ratios(answers: Answers) -> Result:
    return {
        "seconds per token": _ratio(answers, lambda answer: answer.made.decode_s),
        "whole answers": _ratio(answers, lambda answer: answer.seconds),
    }


def _ratio(answers: Answers, seconds_of: Callable[[Answer], float]) -> list[float]:
    """Returns seconds per token with learning over those without, and an interval."""
    tokens = {name: np.array([a.made.num_emitted for a in made]) for name, made in answers.items()}
    seconds = {name: np.array([*map(seconds_of, made)]) for name, made in answers.items()}
    estimate = bootstrap_ratio(seconds[ON], tokens[ON], seconds[OFF], tokens[OFF])
    assert estimate is not None
    return [round(each, 4) for each in (estimate.value, estimate.low, estimate.high)]


def _numbers(answers: Sequence[Answer]) -> Result:
    num_tokens = sum(answer.made.num_emitted for answer in answers)
    num_steps = sum(len(answer.made.steps) for answer in answers)
    pauses = [1e3 * answer.pause_s for answer in answers]
    return {
        "num_tokens": num_tokens,
        "tokens_per_step": round(num_tokens / num_steps, 3),
        "ms_per_token": round(1e3 * sum(a.made.decode_s for a in answers) / num_tokens, 3),
        "pause_ms": {
            "median": round(statistics.median(pauses), 2),
            "longest": round(max(pauses), 2),
        },
    }


def show(result: Result) -> None:
    print_table(
        "Seconds with learning over seconds without",
        ["", "per token", "whole answers", "longest pause, ms", "updates that stayed"],
        [
            [
                f"{target}, {name}",
                *(
                    "{:.3f} ({:.3f}-{:.3f})".format(*found[each])
                    for each in ("seconds per token", "whole answers")
                ),
                f"{found['methods'][ON]['pause_ms']['longest']:.0f}",
                f"{found['learning']['num_kept']} of {found['learning']['num_updates']}",
            ]
            for target, samplings in result["targets"].items()
            for name, found in samplings.items()
        ],
    )


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
