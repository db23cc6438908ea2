"""How much each stream of a mixture counts, by what the target said so far.

A rule is a pure function: the weights of the next draft follow from running totals and from what
one step showed. Totals have a fixed size, whatever the length of the text. Any rule is lossless,
since a draft's weights are fixed before a token is drawn.

Sums go over the target's likely tokens only. What is left out has less than a thousandth of the
most likely token's probability each, or comes after 64 others.

Source: TABED (Lee et al. 2026): inverse divergence and the grid. Online expectation maximization:
Cappé and Moulines 2009. Hedge: Freund and Schapire 1997. The share that streams keep: Herbster and
Warmuth 1998.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations, pairwise
from math import isfinite
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from treesnake.errors import InvalidInputError

MOST_LIKELY = 64
"""Tokens of the target at a position that are compared, at most."""

LEAST_LIKELY = 1e-3
"""The probability of such a token relative to the most likely one, at least."""

SMALLEST = 1e-6
"""A stream's smaller probabilities count as this one: divergences stay finite."""

GRID_STEPS = 10
"""A grid has weights of so many parts of 1."""

EQUAL = 1e-9
"""Numbers of matches that differ by less are equal, but for rounding."""

GAIN_POWER = 0.6
"""The n-th step moves the weights of expectation maximization by n to this power, inverted."""

GROWTH = 3.0
"""A stream of which one more token is accepted than of another gains this on it, as a logarithm."""

KEPT_SHARE = 0.01
"""The part of each step's shares that all streams get alike, so that one that was useless can come
back."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one step showed, at the positions of the text where the target spoke.

    A row of a whole vocabulary comes slowly from memory, so rows of streams are read at the few
    tokens that are asked for.

    Attributes:
        draft_rows: for each position what the streams that ran expected there, in columns of their
            own.
        target_rows: for each position what the target said.
        column_of: for each of the target's tokens its column, or -1 for one that no stream knows;
            None if they are the same.
        shares: what each stream counts as having expected, as a mixture of those that ran; None if
            all ran.
    """

    draft_rows: Sequence[Float[np.ndarray, "ran columns"]]
    target_rows: Sequence[Float[np.ndarray, " vocab"]]
    column_of: Int[np.ndarray, " vocab"] | None = None
    shares: Float[np.ndarray, "streams ran"] | None = None

    @cached_property
    def likely_target_probs(self) -> Float[np.ndarray, " likely"]:
        """The target's probabilities of its likely tokens, those of all positions in a row."""
        pairs = zip(self.target_rows, self._likely, strict=True)
        return np.concatenate([row[tokens] for row, tokens in pairs])

    @cached_property
    def likely_draft_probs(self) -> Float[np.ndarray, "streams likely"]:
        """What the streams expected of the same tokens, at least `SMALLEST`."""
        return np.maximum(self._expected(self._likely), SMALLEST)

    @cached_property
    def best_probs(self) -> Float[np.ndarray, "streams positions"]:
        """What the streams expected of the target's most likely token at each position."""
        return self._expected([np.array([row.argmax()]) for row in self.target_rows])

    @cached_property
    def rival_probs(self) -> Float[np.ndarray, "streams positions ran"]:
        """What the streams expected of the most likely token of each that ran, at each position."""
        rivals = [self._of_streams(rows[:, rows.argmax(-1)]) for rows in self.draft_rows]
        return np.stack(rivals, 1)

    def _expected(
        self, tokens: Sequence[Int[np.ndarray, " _"]]
    ) -> Float[np.ndarray, "streams entries"]:
        """Returns what the streams expected of some tokens at each position."""
        columns = tokens
        if self.column_of is not None:
            columns = [self.column_of[each] for each in tokens]
        pairs = zip(self.draft_rows, columns, strict=True)
        expected = self._of_streams(np.concatenate([rows[:, each] for rows, each in pairs], 1))
        if self.column_of is not None:
            expected[:, np.concatenate(columns) < 0] = 0
        return expected

    def _of_streams(self, ran: Float[np.ndarray, "ran entries"]) -> Float[np.ndarray, "streams _"]:
        return ran if self.shares is None else self.shares @ ran

    @cached_property
    def _likely(self) -> Sequence[Int[np.ndarray, " _"]]:
        """The target's likely tokens at each position."""
        return [_likely_tokens(row) for row in self.target_rows]


def _likely_tokens(probs: Float[np.ndarray, " vocab"]) -> Int[np.ndarray, " likely"]:
    likely = np.flatnonzero(probs >= LEAST_LIKELY * probs.max())
    if len(likely) > MOST_LIKELY:
        best = np.argpartition(probs[likely], -MOST_LIKELY)[-MOST_LIKELY:]
        return likely[best]
    return likely


@dataclass(frozen=True, eq=False)
class Weighing:
    """What a rule knows after some steps.

    Attributes:
        weights: those of the next draft; none is negative, and they sum to 1.
        totals: the rule's running totals.
    """

    weights: Float[np.ndarray, " streams"]
    totals: Float[np.ndarray, "..."]


@runtime_checkable
class WeightRule(Protocol):
    """Decides how much each stream counts."""

    def start(self, weights: Float[np.ndarray, " streams"]) -> Weighing:
        """Returns what is known before the first step.

        Args:
            weights: the first ones, unless the rule has its own.

        Raises:
            InvalidInputError: if the rule is for another number of streams.
        """
        ...

    def update(self, weighing: Weighing, evidence: Evidence) -> Weighing:
        """Returns what is known after one more step."""
        ...


@dataclass(frozen=True)
class FixedWeights:
    """Weights that never move.

    Attributes:
        weights: relative ones; None is the same for every stream.

    Raises:
        InvalidInputError: if one is negative or no number, or all are 0.
    """

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        if not all(isfinite(each) and each >= 0 for each in self.weights) or not any(self.weights):
            raise InvalidInputError(
                "the weights of streams must be finite and not negative, and one of them above 0, "
                f"got {self.weights}"
            )

    def start(self, weights: Float[np.ndarray, " streams"]) -> Weighing:
        """Returns the weights of the rule."""
        if self.weights is None:
            return Weighing(uniform(len(weights)), np.zeros(0))
        if len(self.weights) != len(weights):
            raise InvalidInputError(
                f"{len(self.weights)} weights were given for {len(weights)} streams; give one for "
                "each stream"
            )
        return Weighing(_normalized(np.array(self.weights, np.float64)), np.zeros(0))

    def update(self, weighing: Weighing, evidence: Evidence) -> Weighing:
        """Returns the same."""
        return weighing


@dataclass(frozen=True)
class _Decaying:
    """A rule that may forget.

    Attributes:
        decay: what a step counts for after each later one, above 0 and up to 1.

    Raises:
        InvalidInputError: if the decay is out of range.
    """

    decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise InvalidInputError(
                f"the decay of a weight rule is above 0 and at most 1, got {self.decay}"
            )


@dataclass(frozen=True)
class InverseDivergence(_Decaying):
    """A stream counts by the inverse of its summed divergence from the target.

    The divergence is that of Kullback and Leibler, target first; `SMALLEST` keeps weights finite.
    """

    def start(self, weights: Float[np.ndarray, " streams"]) -> Weighing:
        """Returns the first weights."""
        return Weighing(weights, np.zeros(len(weights)))

    def update(self, weighing: Weighing, evidence: Evidence) -> Weighing:
        """Adds the divergences of a step."""
        target = evidence.likely_target_probs
        divergences = np.log(target / evidence.likely_draft_probs) @ target
        totals = self.decay * weighing.totals + np.maximum(divergences, 0)
        return Weighing(_normalized(1 / (totals + SMALLEST)), totals)


@dataclass(frozen=True)
class MatchingGrid(_Decaying):
    """Of a grid of weights, those whose best token most often was the target's (the paper's rule).

    Among equals the mixture with the smallest divergence counts. The best token of a mixture is
    looked for among the best tokens of its streams.
    """

    def start(self, weights: Float[np.ndarray, " streams"]) -> Weighing:
        """Returns the first weights, which need not be in the grid."""
        return Weighing(weights, np.zeros((2, len(_grid(len(weights))))))

    def update(self, weighing: Weighing, evidence: Evidence) -> Weighing:
        """Adds matches and log-probabilities of a step."""
        grid = _grid(len(weighing.weights))
        best = np.tensordot(grid, evidence.best_probs, 1)
        rivals = np.tensordot(grid, evidence.rival_probs, 1).max(-1)
        matches = (best >= rivals).sum(-1)
        fits = np.log(grid @ evidence.likely_draft_probs) @ evidence.likely_target_probs
        totals = self.decay * weighing.totals + np.stack([matches, fits])
        is_best = totals[0] >= totals[0].max() - EQUAL
        best_index = np.where(is_best, totals[1], -np.inf).argmax()
        return Weighing(_normalized(grid[best_index]), totals)


@dataclass(frozen=True)
class OverlapGrid(_Decaying):
    """Of a grid of weights, those with the least total variation from the target.

    What a mixture has in common with the target is how often a token drawn from it is accepted.
    """

    def start(self, weights: Float[np.ndarray, " streams"]) -> Weighing:
        """Returns the first weights, which need not be in the grid."""
        return Weighing(weights, np.zeros(len(_grid(len(weights)))))

    def update(self, weighing: Weighing, evidence: Evidence) -> Weighing:
        """Adds what mixtures and target have in common in a step."""
        grid = _grid(len(weighing.weights))
        mixtures = grid @ evidence.likely_draft_probs
        common = np.minimum(mixtures, evidence.likely_target_probs).sum(-1)
        totals = self.decay * weighing.totals + common
        return Weighing(_normalized(grid[totals.argmax()]), totals)


@dataclass(frozen=True)
class ExpectationMaximization(_Decaying):
    """The weights under which the mixture makes what the target said most probable.

    The objective is concave, so there is one best mixture and no grid is needed. A step moves the
    weights towards the share that each stream had in the mixture's probability of what was said.
    By default it forgets, so that it follows a text that changes.
    """

    decay: float = 0.8

    def start(self, weights: Float[np.ndarray, " streams"]) -> Weighing:
        """Returns the first weights."""
        return Weighing(weights, np.ones(1))

    def update(self, weighing: Weighing, evidence: Evidence) -> Weighing:
        """Moves the weights by the shares of a step."""
        target, draft = evidence.likely_target_probs, evidence.likely_draft_probs
        shares = _normalized(weighing.weights * (draft @ (target / (weighing.weights @ draft))))
        num_steps = weighing.totals + 1
        gain = max(float(num_steps[0]) ** -GAIN_POWER, 1 - self.decay)
        return Weighing((1 - gain) * weighing.weights + gain * _kept(shares), num_steps)


@dataclass(frozen=True)
class Hedge(_Decaying):
    """A stream counts by how many of its tokens the target would have accepted.

    Each such token multiplies a weight by exp(`GROWTH`), so a few steps tell a better stream, and
    one that is ahead by several tokens drafts alone. `KEPT_SHARE` lets others come back.
    """

    def start(self, weights: Float[np.ndarray, " streams"]) -> Weighing:
        """Returns the first weights."""
        return Weighing(weights, np.zeros(0))

    def update(self, weighing: Weighing, evidence: Evidence) -> Weighing:
        """Multiplies the weights by what each stream gained in a step."""
        common = np.minimum(evidence.likely_draft_probs, evidence.likely_target_probs)
        gains = common.sum(-1)
        grown = weighing.weights**self.decay * np.exp(GROWTH * (gains - gains.max()))
        return Weighing(_kept(_normalized(grown)), weighing.totals)


WEIGHT_RULES: dict[str, Callable[[], WeightRule]] = {
    "uniform": FixedWeights,
    "inverse-kl": InverseDivergence,
    "grid": MatchingGrid,
    "total-variation": OverlapGrid,
    "em": ExpectationMaximization,
    "hedge": Hedge,
}
"""The rules by name."""


def parse_weight_rule(text: str) -> WeightRule:
    """Returns a rule by its name, or fixed weights, as in "0.7,0.3".

    Raises:
        InvalidInputError: if it is neither.
    """
    if text in WEIGHT_RULES:
        return WEIGHT_RULES[text]()
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInputError(
            f"there is no rule {text!r} for the weights of streams; choose one of "
            f"{', '.join(WEIGHT_RULES)}, or give weights as in 0.7,0.3"
        ) from error
    return FixedWeights(weights)


@lru_cache(maxsize=8)
def _grid(num_streams: int) -> Float[np.ndarray, "candidates streams"]:
    """Returns all weights that are multiples of a grid step: 11, 66 and 286 for 2, 3, 4 streams.

    In float32, as the probabilities that they are multiplied with.
    """
    slots = GRID_STEPS + num_streams - 1
    candidates: list[Sequence[int]] = []
    for borders in combinations(range(slots), num_streams - 1):
        edges = (-1, *borders, slots)
        candidates.append([after - before - 1 for before, after in pairwise(edges)])
    return (np.array(candidates) / GRID_STEPS).astype(np.float32)


def uniform(num_streams: int) -> Float[np.ndarray, " streams"]:
    """Returns equal weights."""
    return np.full(num_streams, 1 / num_streams)


def _kept(shares: Float[np.ndarray, " streams"]) -> Float[np.ndarray, " streams"]:
    """Returns shares of which none is next to nothing."""
    return (1 - KEPT_SHARE) * shares + KEPT_SHARE / len(shares)


def _normalized(weights: Float[np.ndarray, " streams"]) -> Float[np.ndarray, " streams"]:
    weights = weights.astype(np.float64)
    return weights / weights.sum()
