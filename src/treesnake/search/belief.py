"""How often the drafter's nodes are accepted, by rank and depth, and by its own confidence.

Every step updates the same few numbers, whatever its shape. Counts decay, so that a kind of node
that was not seen for long returns to the hopeful prior, and is tried again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from treesnake.tree import TokenTree

NUM_RANKS = 8
NUM_DEPTHS = 16

DISCOUNT = 0.99
"""The weight of an observation falls by this factor with each later one of its kind."""

PRIOR_WEIGHT = 4.0
"""How many observations the prior counts for."""

PRIOR_BY_RANK = (0.6, 0.45, 0.25, 0.2, 0.15, 0.1, 0.1, 0.1)
"""How often the child of a rank is accepted, once those of lower ranks are rejected."""

BINS_PER_OCTAVE = 2
NUM_BINS = 17
BIN_MIDDLES = tuple(2 ** (-(number + 0.5) / BINS_PER_OCTAVE) for number in range(NUM_BINS))
BINS_PER_NAT = BINS_PER_OCTAVE / log(2)


class RankBelief:
    """How often the child of a rank is accepted, by depth, if its parent was.

    What is counted is how often a child is accepted once its siblings of lower ranks are rejected.
    So where the first child is nearly always accepted, little is left for a second, whether there
    ever was one or not.
    """

    def __init__(self) -> None:
        self._accepted = [[0.0] * NUM_RANKS for _ in range(NUM_DEPTHS)]
        self._reached = [[0.0] * NUM_RANKS for _ in range(NUM_DEPTHS)]

    def observe(self, tree: TokenTree, path: Sequence[int]) -> None:
        """Counts the children of the nodes on an accepted path; at most one is accepted."""
        for level, node in enumerate(path):
            children = tree.children[node]
            if not children or level >= NUM_DEPTHS:
                return
            accepted, reached = self._accepted[level], self._reached[level]
            is_taken = level + 1 < len(path)
            last = children.index(path[level + 1]) if is_taken else len(children) - 1
            for rank in range(NUM_RANKS):
                accepted[rank] *= DISCOUNT
                reached[rank] = reached[rank] * DISCOUNT + (rank <= last)
            if is_taken and last < NUM_RANKS:
                accepted[last] += 1

    def table(self) -> list[list[float]]:
        """Returns the probabilities by depth, from that of the anchor's children, and by rank.

        The prior of a depth is the mean of all depths.
        """
        accepted_at_any, reached_at_any = (
            [sum(rank) for rank in zip(*counts, strict=True)]
            for counts in (self._accepted, self._reached)
        )
        pooled = _rates(accepted_at_any, reached_at_any, PRIOR_BY_RANK)
        return [
            _one_of(_rates(accepted, reached, pooled))
            for accepted, reached in zip(self._accepted, self._reached, strict=True)
        ]


class ConfidenceBelief:
    """How often a node is accepted, by the probability that the drafter itself gives its path.

    Counts are kept in bins of equal ratio. They are read as a curve that never falls with the
    confidence.
    """

    def __init__(self) -> None:
        self._accepted = [0.0] * NUM_BINS
        self._offered = [0.0] * NUM_BINS

    def observe(self, node_probs: Sequence[float], path: Sequence[int]) -> None:
        """Counts every node of a tree, accepted or not."""
        decay = DISCOUNT
        self._accepted = [count * decay for count in self._accepted]
        self._offered = [count * decay for count in self._offered]
        bins = list(map(_bin, node_probs))
        for each in bins[1:]:
            self._offered[each] += 1
        for node in path[1:]:
            self._accepted[bins[node]] += 1

    def curve(self) -> "ConfidenceCurve":
        """Returns how often nodes are believed to be accepted, as of now."""
        rates = [
            (accepted + PRIOR_WEIGHT * middle) / (offered + PRIOR_WEIGHT)
            for accepted, offered, middle in zip(
                self._accepted, self._offered, BIN_MIDDLES, strict=True
            )
        ]
        weights = [offered + PRIOR_WEIGHT for offered in self._offered]
        return ConfidenceCurve(tuple(_falling(rates, weights)))


@dataclass(frozen=True)
class ConfidenceCurve:
    """How often nodes are accepted by bin, the most confident bin first, never rising."""

    accepted: tuple[float, ...]

    def confidence_for(self, probability: float) -> float:
        """Returns the lowest confidence at which nodes are accepted with this probability.

        It is more than 1 if no confidence is enough.
        """
        if probability <= 0:
            return 0.0
        if self.accepted[0] < probability:
            return 2.0
        for number in range(1, NUM_BINS):
            above, below = self.accepted[number - 1], self.accepted[number]
            if below < probability:
                share = (above - probability) / (above - below)
                return 2 ** (-(number - 0.5 + share) / BINS_PER_OCTAVE)
        return 0.0


def _rates(
    accepted: Sequence[float], offered: Sequence[float], prior: Sequence[float]
) -> list[float]:
    """Returns accepted of offered by rank; `prior` counts for `PRIOR_WEIGHT` offers more."""
    return [
        (hits + PRIOR_WEIGHT * before) / (tries + PRIOR_WEIGHT)
        for hits, tries, before in zip(accepted, offered, prior, strict=True)
    ]


def _one_of(rates: Sequence[float]) -> list[float]:
    """Returns how often each of a row of candidates is the one that is taken.

    Args:
        rates: how often a candidate is taken, once those before it are not.
    """
    left, taken = 1.0, list[float]()
    for rate in rates:
        taken.append(left * rate)
        left -= taken[-1]
    return taken


def _bin(prob: float) -> int:
    """Returns the bin of a probability; that of nan is the last, where nothing is believed."""
    if not prob > 0:
        return NUM_BINS - 1
    return min(int(-log(min(prob, 1.0)) * BINS_PER_NAT), NUM_BINS - 1)


def _falling(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Returns the nearest values that never rise, by pooling neighbours (isotonic regression)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] < pool[0]:
            before = pools.pop()
            total = before[1] + pool[1]
            mean = (before[0] * before[1] + pool[0] * pool[1]) / total
            pool = (mean, total, before[2] + pool[2])
        pools.append(pool)
    return [value for value, _, size in pools for _ in range(size)]
