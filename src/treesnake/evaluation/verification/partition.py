"""All short texts, divided into cells of known probability by asking the target alone."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

NextProbs = Callable[[tuple[int, ...]], Float[Tensor, " vocab"]]
"""The target's probabilities of the next token after some new tokens."""

FEWEST_EXPECTED = 5
MOST_CELLS = 24
MOST_POOLS = 4
"""Into how many cells the rarer tokens after a text go at most."""

RARE = 0
"""The cell of all continuations that are too rare for one of their own, wherever they come up."""

IMPOSSIBLE = -1
DIVIDED = -2


@dataclass(frozen=True, eq=False)
class Split:
    """The division of the texts after a prefix by their next token.

    Attributes:
        cell_of: per token of the vocabulary its cell, IMPOSSIBLE, or DIVIDED further.
        splits: of the tokens that are divided further.
    """

    cell_of: Int[np.ndarray, " vocab"]
    splits: dict[int, "Split"] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Partition:
    """Cells of texts; every text that the target can write is in one of them.

    Attributes:
        root: the division by the first token.
        probs: per cell; they sum to 1. That of RARE may be 0.
        labels: per cell, its texts in words.
    """

    root: Split
    probs: Float[np.ndarray, " cells"]
    labels: list[str]

    def find(self, tokens: Sequence[int]) -> int:
        """Returns the cell of a text, or IMPOSSIBLE."""
        split = self.root
        for token in tokens:
            cell = int(split.cell_of[token])
            if cell != DIVIDED:
                return cell
            split = split.splits[token]
        raise AssertionError("a text ends before its cell is known")


@dataclass(order=True)
class _Undivided:
    """Texts with a common prefix that are not told apart yet; the most probable come first."""

    sort_key: float
    prefix: tuple[int, ...] = field(compare=False)
    prob: float = field(compare=False)
    parent: Split | None = field(compare=False)


class _Cells:
    """The cells so far."""

    def __init__(self) -> None:
        self.probs = [0.0]
        self.labels = ["all rare continuations"]

    def add(self, prob: float, label: str) -> int:
        """Adds a cell and returns its number."""
        self.probs.append(prob)
        self.labels.append(label)
        return len(self.probs) - 1


def divide_texts(
    next_probs: NextProbs,
    *,
    num_samples: int,
    num_tokens: int,
    is_ended: Callable[[Sequence[int]], bool],
    describe: Callable[[Sequence[int]], str],
) -> Partition:
    """Divides the texts of up to `num_tokens` tokens into about 24 cells at most.

    The most probable text is divided by its next token again and again. Tokens that are probable
    enough for a cell of their own, with at least 5 expected samples, get one; the others are pooled
    in up to four cells. Where one continuation is all but certain the division goes on behind it.
    Nothing depends on a sample, so a test on these cells is valid.

    Args:
        next_probs: asks the target; at most once a cell.
        num_samples: how many texts will be counted.
        num_tokens: the length of the texts, at least 1.
        is_ended: whether a text is over before that.
        describe: names tokens in labels.
    """
    smallest = max(FEWEST_EXPECTED / num_samples, 1 / MOST_CELLS)
    cells = _Cells()
    heap = [_Undivided(-1.0, (), 1.0, None)]
    root: Split | None = None
    while heap:
        texts = heapq.heappop(heap)
        if texts.parent is not None and (
            len(texts.prefix) == num_tokens or is_ended(texts.prefix) or texts.prob < 2 * smallest
        ):
            texts.parent.cell_of[texts.prefix[-1]] = cells.add(texts.prob, describe(texts.prefix))
            continue
        probs = next_probs(texts.prefix).double().numpy()
        probs = probs / probs.sum() * texts.prob
        split = _divide(probs, smallest, cells, describe(texts.prefix))
        if texts.parent is None:
            root = split
        else:
            texts.parent.splits[texts.prefix[-1]] = split
        for token in np.flatnonzero(split.cell_of == DIVIDED).tolist():
            prob = float(probs[token])
            heapq.heappush(heap, _Undivided(-prob, (*texts.prefix, token), prob, split))
    assert root is not None
    totals = np.array(cells.probs)
    return Partition(root, totals / totals.sum(), cells.labels)


def _divide(
    probs: Float[np.ndarray, " vocab"], smallest: float, cells: _Cells, label: str
) -> Split:
    """Leaves each probable token to be divided further, and pools the others."""
    order = np.argsort(-probs, kind="stable")
    rest = order[(probs[order] < smallest) & (probs[order] > 0)]
    cell_of = np.full(len(probs), IMPOSSIBLE)
    cell_of[probs >= smallest] = DIVIDED
    rest_prob = float(probs[rest].sum())
    num_pools = min(MOST_POOLS, max(int(rest_prob / (2 * smallest)), int(rest_prob >= smallest)))
    if num_pools == 0:
        cells.probs[RARE] += rest_prob
        cell_of[rest] = RARE
        return Split(cell_of)
    cumulative = np.cumsum(probs[rest])
    inner_edges = [rest_prob * part / num_pools for part in range(1, num_pools)]
    for pool in np.split(rest, np.searchsorted(cumulative, inner_edges) + 1):
        if len(pool):
            name = f"{label} + one of {len(pool)} rarer tokens".removeprefix(" + ")
            cell_of[pool] = cells.add(float(probs[pool].sum()), name)
    return Split(cell_of)
