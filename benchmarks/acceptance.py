"""What do the rules for sampled trees accept, and what do they cost?

    python benchmarks/acceptance.py --threads 1 --output results/acceptance.json

A drafter and a target whose logits are the same but for noise, over a vocabulary of 49152 tokens.
For each shape, temperature and noise both rules are run on the same trees with the same chance, in
turn. Reported are accepted tokens, the median milliseconds of a call, and beside them those of
making probabilities of the target's logits.
"""

import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

import torch
from frame import Result, run
from torch import Tensor

from treesnake.acceptance.traversal import traversal
from treesnake.acceptance.tree_rejection import tree_rejection
from treesnake.chance import TorchRng
from treesnake.drafters.growing import grow
from treesnake.sampling import Distributions, SamplingParams
from treesnake.shape import LevelWidths

VOCAB_SIZE = 49152
SPREAD = 3.0
"""Standard deviation of the logits: a few tokens hold most of the mass."""

SHAPES = tuple(map(LevelWidths, ((2, 2, 1), (3, 2, 1, 1), (3, 2, 2, 1), (3, 3, 2))))
PARAMS = (SamplingParams(temperature=1.0), SamplingParams(temperature=0.7, top_p=0.9))
NOISES = (0.5, 1.5)
RULES = {"traversal": traversal, "tree_rejection": tree_rejection}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--trees", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3, help="calls of each rule per tree")


def measure(arguments: Namespace) -> Result:
    settings: Result = {}
    for shape in SHAPES:
        for params in PARAMS:
            for noise in NOISES:
                name = f"{shape}, temperature {params.temperature}, top-p {params.top_p}, {noise}"
                row = _measure(shape, params, noise, arguments.trees, arguments.repeats)
                settings[name] = row
                print(f"{name}: {row}", flush=True)
    return {"settings": settings}


def _measure(
    shape: LevelWidths, params: SamplingParams, noise: float, num_trees: int, num_repeats: int
) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in ("to_probs", *RULES)}
    accepted = dict.fromkeys(RULES, 0)
    for tree in range(num_trees):
        chance = torch.Generator().manual_seed(tree)
        common = torch.randn(VOCAB_SIZE, generator=chance) * SPREAD

        def rows(token_ids: Sequence[int], common: Tensor = common) -> Tensor:
            return torch.stack([common.roll(token) for token in token_ids])

        draft = grow(1, shape, params, TorchRng(tree), lambda tokens, parents: rows(tokens)).draft
        logits = rows(draft.tree.tokens)
        logits += noise * torch.randn(logits.shape, generator=chance)
        start = time.perf_counter()
        target = Distributions(logits, params)
        _ = target.probs
        times["to_probs"].append(time.perf_counter() - start)
        for repeat in range(num_repeats):
            for name, rule in RULES.items():
                rng = TorchRng(num_repeats * tree + repeat)
                start = time.perf_counter()
                acceptance = rule(draft, target, rng)
                times[name].append(time.perf_counter() - start)
                accepted[name] += len(acceptance.path) - 1
    num_calls = num_trees * num_repeats
    return {
        "nodes": shape.num_drafted + 1,
        "ms": {name: round(statistics.median(taken) * 1e3, 3) for name, taken in times.items()},
        "accepted": {name: round(number / num_calls, 3) for name, number in accepted.items()},
    }


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments)
