"""Traces made up by chance, for tests and for questions that no recorded text answers."""

import random
from collections.abc import Callable, Sequence
from math import log

from treesnake.drafters.growing import grow_best
from treesnake.evaluation.simulation.trace import RecordedTree, Trace
from treesnake.shape import Priced

TREE = Priced(4, (0.0,) * 6, (0.0,) * 32)
NUM_RANKS = 4

Confidence = Callable[[random.Random], float]
"""Draws the probability of the drafter's most probable token at a position."""


def synthetic_trace(
    num_tokens: int,
    confidence: Confidence,
    *,
    truth: float = 1.0,
    seed: int = 0,
    category: str = "synthetic",
) -> Trace:
    """Makes up a drafter that is right as often as it says, times `truth`.

    Each of the next ranks has half of what the ones before it leave.
    """
    chance = random.Random(seed)
    rows = [_row(confidence(chance)) for _ in range(num_tokens)]
    ranks = tuple(_draw(row, truth, chance) for row in rows)
    trees = tuple(
        _tree(rows, ranks, position, confidence, chance) for position in range(num_tokens)
    )
    return Trace(f"synthetic-{seed}", category, 64, ranks, trees)


def _row(first: float) -> list[float]:
    row, left = [first], 1 - first
    while len(row) < NUM_RANKS:
        row.append(min(left / 2, row[-1]))
        left -= row[-1]
    return row


def _draw(row: list[float], truth: float, chance: random.Random) -> int:
    drawn = chance.random() / truth if truth else 2.0
    for rank, prob in enumerate(row):
        if drawn < prob:
            return rank
        drawn -= prob
    return -1


def _tree(
    rows: list[list[float]],
    ranks: tuple[int, ...],
    position: int,
    confidence: Confidence,
    chance: random.Random,
) -> RecordedTree:
    """Grows a tree whose tokens say how far along the text they are: its depth there, or -1."""

    def best_children(
        nodes: Sequence[int], tokens: Sequence[int], parents: Sequence[int]
    ) -> list[list[tuple[int, float]]]:
        found: list[list[tuple[int, float]]] = []
        for node in nodes:
            along = tokens[node]
            here = position + along
            is_text = along >= 0 and here < len(rows)
            row = rows[here] if is_text else _row(confidence(chance))
            found.append(
                [
                    (along + 1 if is_text and rank == ranks[here] else -1 - rank, log(max(p, 1e-9)))
                    for rank, p in enumerate(row)
                ]
            )
        return found

    grown = grow_best(0, TREE, best_children)
    path = [0]
    for node in range(1, len(grown.tokens)):
        if grown.parents[node] == path[-1] and grown.tokens[node] == len(path):
            path.append(node)
    return RecordedTree(grown.parents, grown.probs, tuple(path))
