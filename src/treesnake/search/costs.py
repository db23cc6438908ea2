"""What drafting and scoring take, in seconds: measured before, corrected by every step."""

from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf, log, log2

from treesnake.errors import InvalidInputError
from treesnake.outcome import Step

KNOTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Costs are kept at these counts of nodes, and interpolated between them."""

SLOWEST_GAIN = 0.05
"""The least weight of an observation, so that costs follow a machine that changes."""

DRIFT_GAIN = 0.02
"""The weight of an observation in the costs of all other counts: a text that grows raises all."""


@dataclass(frozen=True)
class CostTable:
    """Measured costs of a pair on a machine.

    Attributes:
        score_s: for some context lengths, the seconds of a step without drafting by the number of
            nodes, the anchor counted.
        draft_s: for some context lengths, the seconds to draft a level by the number of nodes that
            are expanded for it.
    """

    score_s: Mapping[int, Mapping[int, float]]
    draft_s: Mapping[int, Mapping[int, float]]

    def __post_init__(self) -> None:
        for table in (self.score_s, self.draft_s):
            for costs in table.values():
                if not costs or min(costs) < 1 or min(costs.values()) <= 0:
                    raise InvalidInputError(
                        f"a table of costs needs positive counts and seconds, got {dict(costs)}"
                    )
        if not self.score_s:
            raise InvalidInputError(
                "a table of costs needs those of scoring at one length at least"
            )


@dataclass(frozen=True)
class LengthFactors:
    """By how much costs grow with the context: 1 at the shortest length that was measured."""

    lengths: tuple[int, ...] = (0,)
    factors: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, table: Mapping[int, Mapping[int, float]]) -> "LengthFactors":
        """Reads the factors from the smallest count in a table."""
        lengths = tuple(sorted(table))
        if not lengths:
            return cls()
        first = table[lengths[0]]
        count = min(first)
        return cls(
            lengths, tuple(table[each].get(count, first[count]) / first[count] for each in lengths)
        )

    def at(self, length: int) -> float:
        """Returns the factor, interpolated, and constant beyond the lengths that were measured."""
        return _interpolated(self.lengths, self.factors, length)


@dataclass(eq=False)
class CostCurve:
    """Seconds by a count of nodes, learned from what steps took.

    It begins with a table, or with the hope that all counts cost the same. Each observation moves
    the factors by which the curve differs from the table at the counts around it. A count that was
    never seen takes a factor between those of its seen neighbours. So one observation puts right a
    table that is wrong everywhere. Beyond the largest count of the table, or the largest one seen
    where there is no table, seconds are believed to rise half as steeply as up to there: hopeful
    enough to be tried.

    Args:
        table: seconds for some counts; it may be empty.
    """

    table: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = tuple(sorted(self.table)) or (1,)
        seconds = tuple(self.table[count] for count in counts) if self.table else (1.0,)
        self._prior = [_interpolated(counts, seconds, knot) for knot in KNOTS]
        _go_on(self._prior, (counts[0], seconds[0]), (counts[-1], seconds[-1]))
        self._factors = [1.0] * len(KNOTS)
        self._weights = [0.0] * len(KNOTS)
        self._seen: list[int] = []
        self._spread = _spread([0])
        self._curve = self._filled()
        self.largest_seen = 0

    @property
    def is_known(self) -> bool:
        """Whether there was a table or an observation."""
        return bool(self.table) or self.largest_seen > 0

    def seconds(self, count: int) -> float:
        """Returns the seconds that a count is believed to take; they never fall with the count."""
        if count <= 0:
            return 0.0
        curve = self._curve
        lower, share = _place(min(count, KNOTS[-1]))
        if share == 0:
            return curve[lower]
        return curve[lower] + share * (curve[lower + 1] - curve[lower])

    def shared_by(self, num_texts: int) -> dict[int, float]:
        """Returns what a text may pay that shares passes with others, as a table for a curve.

        A pass over the trees of all takes what one over a tree of all their nodes takes, and more
        nodes than this curve has take time in proportion. Each text pays an equal part. The table
        is empty as long as nothing is known.
        """
        if not self.is_known:
            return {}
        last = max(max(self.table, default=KNOTS[-1]), self.largest_seen)

        def pass_s(count: int) -> float:
            return self.seconds(min(count, last)) * max(count / last, 1.0)

        return {count: pass_s(num_texts * count) / num_texts for count in KNOTS}

    def observe(self, count: int, seconds: float) -> None:
        """Learns from the seconds that a count took.

        Of the first two observations at a count the smaller one holds, since a first run takes
        longer. Later ones that are off by more than a factor of two count as off by two.
        """
        ratio = max(seconds, 1e-9) / self.seconds(count)
        lower, share = _place(min(count, KNOTS[-1]))
        near = [(lower, 1 - share)] + ([(lower + 1, share)] if share else [])
        if all(self._weights[knot] >= 2 for knot, _ in near):
            ratio = min(max(ratio, 0.5), 2.0)
            drift = ratio**DRIFT_GAIN
            self._factors = [factor * drift for factor in self._factors]
        for knot, part in near:
            if part >= 0.25:
                self._learn(knot, part, ratio)
        self.largest_seen = max(self.largest_seen, count)
        self._curve = self._filled()

    def _learn(self, knot: int, part: float, ratio: float) -> None:
        """Moves the factor of a knot by an observation that belongs to it to the share `part`."""
        weight = self._weights[knot]
        if weight >= 2:
            self._factors[knot] *= ratio ** max(part / weight, SLOWEST_GAIN * part)
        else:
            known = self._curve[knot] / self._prior[knot]
            self._factors[knot] = known * (min(ratio, 1.0) if weight else ratio)
        self._weights[knot] = weight + part
        if not weight:
            insort(self._seen, knot)
            self._spread = _spread(self._seen)

    def _filled(self) -> list[float]:
        """Returns the seconds at every knot.

        A count cannot take longer than a larger one. If it seemed to, something else was slow.
        """
        prior = self._prior
        factors: list[float] = []
        least = inf
        for knot in reversed(self._seen or [0]):
            least = min(least, prior[knot] * self._factors[knot])
            factors.append(least / prior[knot])
        factors.reverse()
        curve: list[float] = []
        slowest = 0.0
        for seconds, (below, above, share) in zip(prior, self._spread, strict=True):
            factor = factors[below] + share * (factors[above] - factors[below])
            slowest = max(slowest, seconds * factor)
            curve.append(slowest)
        if not self.table and self._seen:
            first, last = self._seen[0], self._seen[-1]
            _go_on(curve, (KNOTS[first], curve[first]), (KNOTS[last], curve[last]))
        return curve


class LearnedCosts:
    """What drafting and scoring take at a context length, learned from steps.

    Args:
        table: what was measured before, if anything was.
    """

    def __init__(self, table: CostTable | None = None) -> None:
        score = table.score_s if table else {}
        draft = table.draft_s if table else {}
        self._score_factors, self._draft_factors = LengthFactors.of(score), LengthFactors.of(draft)
        self._score = CostCurve(score[min(score)] if score else {})
        self._draft = CostCurve(draft[min(draft)] if draft else {})

    def shared_by(self, num_texts: int) -> "LearnedCosts":
        """Returns what is believed of a text that shares passes, before any of its steps."""
        shared = copy(self)
        shared._score = CostCurve(self._score.shared_by(num_texts))
        shared._draft = CostCurve(self._draft.shared_by(num_texts))
        return shared

    @property
    def most_nodes(self) -> int:
        """The most nodes to draft: twice the most seen, since a table may be wrong."""
        return 2 * self._score.largest_seen + 2

    @property
    def most_width(self) -> int:
        """The most nodes of a level to expand: twice the most seen."""
        return 2 * self._draft.largest_seen + 1

    def score_s(self, num_nodes: int, context_length: int) -> float:
        """Returns the seconds of a step with this many nodes, without drafting."""
        return self._score.seconds(num_nodes) * self._score_factors.at(context_length)

    def draft_s(self, num_expanded: int, context_length: int) -> float:
        """Returns the seconds of drafting a level for which this many nodes are expanded."""
        return self._draft.seconds(num_expanded) * self._draft_factors.at(context_length)

    def observe(self, step: Step, context_length: int, *, num_behind: int = 0) -> float:
        """Learns what a step took, and returns the seconds of drafting beyond what was believed.

        Args:
            step: the step.
            context_length: the tokens of its text before it.
            num_behind: the tokens that the drafter had to read first. If there are any, drafting
                took longer than usual: its time is believed only if nothing better is known.
        """
        rest_s = step.seconds.work_s - step.seconds.draft_s
        self._score.observe(len(step.tree), rest_s / self._score_factors.at(context_length))
        levels = step.tree.num_expanded if step.num_expanded is None else step.num_expanded
        believed_s = sum(self.draft_s(level, context_length) for level in levels)
        extra_s = max(step.seconds.draft_s - believed_s, 0.0)
        if levels and not (num_behind and self._draft.is_known):
            ratio = step.seconds.draft_s / believed_s
            for level in set(levels):
                self._draft.observe(level, self._draft.seconds(level) * ratio)
        return extra_s


class ReadingCosts:
    """What it takes until a drafter has read a prompt, in seconds, learned from every time.

    Kept by the power of two that is nearest to the number of tokens. Beyond what was seen they are
    believed to grow as the root of the number, hopefully: a drafter may read the end alone.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def seconds(self, num_tokens: int) -> float:
        """Returns the seconds that so many tokens are believed to take; 0 before the first time."""
        if not num_tokens or not self._seconds:
            return 0.0
        power = log2(num_tokens)
        near = min(self._seconds, key=lambda known: abs(known - power))
        growth = power - near
        return self._seconds[near] * 2 ** (growth / 2 if growth > 0 else growth)

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Learns from the seconds that a number of tokens took; the latest counts half."""
        power = round(log2(num_tokens))
        per_token = seconds / num_tokens
        known = self._seconds.get(power)
        newest = per_token * 2**power
        self._seconds[power] = newest if known is None else (known + newest) / 2


@lru_cache(maxsize=256)
def _place(count: int) -> tuple[int, float]:
    """Returns the knot at or below a count, and how far it is to the next, from 0 to 1."""
    lower = bisect_right(KNOTS, count) - 1
    if KNOTS[lower] == count:
        return lower, 0.0
    return lower, log(count / KNOTS[lower]) / log(KNOTS[lower + 1] / KNOTS[lower])


def _spread(seen: Sequence[int]) -> list[tuple[int, int, float]]:
    """Returns for every knot the indices of the seen ones around it, and how far it is between."""
    spread = []
    for knot in range(len(KNOTS)):
        after = bisect_right(seen, knot)
        below, above = max(after - 1, 0), min(after, len(seen) - 1)
        share = (knot - seen[below]) / (seen[above] - seen[below]) if below < above else 0.0
        spread.append((below, above, share))
    return spread


def _go_on(curve: list[float], first: tuple[int, float], last: tuple[int, float]) -> None:
    """Lets the seconds at the knots rise beyond a count, half as steeply as from another one on.

    Args:
        curve: the seconds at every knot.
        first: the other count, and its seconds.
        last: the count, and its seconds.
    """
    slope = 0.5 * (last[1] - first[1]) / (last[0] - first[0]) if first < last else 0.0
    for index, knot in enumerate(KNOTS):
        if knot > last[0]:
            curve[index] = last[1] + slope * (knot - last[0])


def _interpolated(knots: Sequence[int], values: Sequence[float], point: int) -> float:
    """Returns the value at a point, linear between the knots and constant beyond them."""
    after = bisect_right(knots, point)
    if after == 0:
        return values[0]
    if after == len(knots):
        return values[-1]
    share = (point - knots[after - 1]) / (knots[after] - knots[after - 1])
    return values[after - 1] + share * (values[after] - values[after - 1])
