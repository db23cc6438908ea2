"""Is it worth drafting where the next token depends on the picture?

    python recipes/shapeworld/train.py runs/shapeworld
    python benchmarks/image_dependence.py --pairs runs/shapeworld --prompts 16 --seeds 0 1 \
        --threads 1 --output results/image_dependence.json

ViSkip (MMSpec, arXiv 2603.14989) estimates whether a step depends on the picture, and drafts
nothing then. Here that is known and not estimated: the target reads the same text without its
pictures, and a step depends on them if its first token is expected otherwise by a total variation
of more than a half. So this is the best that such a rule can do on these texts.

The target's greedy texts are replayed as in tabed.py, with chains. Counted are the steps that
depend on pictures, the others, and the tokens of both. One more replay drafts in the others only.
Prices follow from the counts: a pass of the target is 1, one of the drafter a part of it.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from frame import Result, print_table, run
from tabed import (
    DEFAULT_RULE,
    DRAFTED,
    MEASURED_TASKS,
    RecordedPair,
    ReplayedMixture,
    Text,
    expected_probs,
)

DEPENDS = 0.5
"""The total variation from which on a token depends on the pictures."""

ENSEMBLES = ("M", "T", "MT")


@dataclass(frozen=True)
class Counts:
    """Steps and tokens of some texts.

    Attributes:
        steps: those that depend on pictures, and the others.
        tokens: what they emitted.
        num_drafted: steps with a draft.
    """

    steps: tuple[int, int] = (0, 0)
    tokens: tuple[int, int] = (0, 0)
    num_drafted: int = 0

    def and_step(self, depends: bool, num_tokens: int, is_drafted: bool) -> "Counts":
        """Returns the counts with one more step."""
        which = (1, 0) if depends else (0, 1)
        steps = (self.steps[0] + which[0], self.steps[1] + which[1])
        tokens = (
            self.tokens[0] + which[0] * num_tokens,
            self.tokens[1] + which[1] * num_tokens,
        )
        return Counts(steps, tokens, self.num_drafted + is_drafted)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--pairs", type=Path, required=True, help="folder of target-N, drafter-N")
    parser.add_argument("--prompts", type=int, default=16, help="of each task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def measure(arguments: Namespace) -> Result:
    counted: dict[str, dict[str, Counts]] = {}
    for seed in arguments.seeds:
        pair = RecordedPair(arguments.pairs, seed)
        for task in MEASURED_TASKS:
            prompts, _ = pair.prompts(task, arguments.prompts)
            counts = counted.setdefault(task, {})
            blind = prompts.views["T"]
            for text, without in zip(pair.texts(prompts, "greedy"), blind, strict=True):
                unseen = expected_probs(pair.target, without, text.tokens.tolist(), None)
                depends = np.abs(text.target_probs - unseen).sum(-1) / 2 > DEPENDS
                for ensemble in ENSEMBLES:
                    for skips in (False, True):
                        name = f"{ensemble}, skips" if skips else ensemble
                        before = counts.get(name, Counts())
                        counts[name] = _replayed(text, ensemble, depends, skips, before)
            print(f"seed {seed}: {task}", flush=True)
    return {
        "prompts": arguments.prompts,
        "seeds": arguments.seeds,
        "drafted": DRAFTED,
        "depends": DEPENDS,
        "tasks": {
            task: {name: vars(each) for name, each in counts.items()}
            for task, counts in counted.items()
        },
    }


def _replayed(
    text: Text, ensemble: str, depends: Sequence[bool], skips: bool, counts: Counts
) -> Counts:
    """Adds the steps in which a text is emitted greedily."""
    mixture, start = ReplayedMixture(text.as_greedy(), ensemble, DEFAULT_RULE), 0
    while start < len(text.tokens):
        is_drafted = not (skips and depends[start])
        end = min(start + DRAFTED, len(text.tokens)) if is_drafted else start
        expected = mixture.expects(start, end)
        index = start
        while index < end and expected[index - start].argmax() == text.tokens[index]:
            index += 1
        if is_drafted:
            mixture.learns(start, min(index + 1, end))
        num_tokens = min(index + 1, len(text.tokens)) - start
        counts = counts.and_step(bool(depends[start]), num_tokens, is_drafted)
        start = index + 1
    return counts


def show(result: Result) -> None:
    rows = []
    for task, counts in result["tasks"].items():
        for name in ENSEMBLES:
            steps, tokens = counts[name]["steps"], counts[name]["tokens"]
            each = [f"{n / max(number, 1):.2f}" for n, number in zip(tokens, steps, strict=True)]
            rows.append([task, name, f"{steps[0] / sum(steps):.0%}", *each])
    heads = ["task", "drafter", "steps that depend", "tokens there", "tokens elsewhere"]
    print_table("tokens a step, where it depends on pictures", heads, rows)


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
