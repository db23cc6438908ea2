"""Whether streams of a mixture are worth their time: what they take, and what they bring.

Streams are ranked by weight. What the first of them bring is how often a token is accepted that
they draft together; what they take is measured. As many run as make the most tokens per second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from treesnake.drafters.weight_rules import Evidence

COST_GAIN = 0.1
"""The weight of an observation in the seconds of a level."""

LARGEST_CHANGE = 2.0
"""An observation that is off by a larger factor counts as off by this one: a machine may pause."""

TRUST = 0.99
"""What is left of a belief about seconds after each level that other streams ran."""

MEMORY = 0.95
"""What a step counts for after each later one."""

CHANCE_OF_BEST = 2.0
"""A token with more than half of the probability is the best one. Else so many times its
probability is taken for the chance that it is."""

Members = tuple[int, ...]
"""Streams by number, in rising order."""


@dataclass(frozen=True)
class _LevelCost:
    """What is believed of some streams.

    Attributes:
        seconds: that they take for a level.
        count: how often that was seen.
        seen_at: how many levels of all streams had been seen when it was seen last.
    """

    seconds: float
    count: int
    seen_at: int


class LevelCosts:
    """The seconds in which streams draft a level of a tree, learned from the steps of all texts.

    Streams of one network share its passes, so these are the seconds of all that run, not of each.
    """

    def __init__(self) -> None:
        self._known: dict[Members, _LevelCost] = {}
        self._num_seen = 0

    def seconds(self, members: Members) -> float:
        """Returns what a level is believed to take.

        Streams that never ran alone are hoped to take their part of what more of them took. Hope
        makes them run alone, and then it is known. Hope comes back with time: one slow level does
        not keep them from running alone for ever.
        """
        known = dict(self._known)  # other texts may add to it
        shares = (
            cost.seconds * min(len(members) / len(others), 1.0)
            for others, cost in known.items()
            if others != members
        )
        hope = min(shares, default=0.0)
        if members not in known:
            return hope
        believed, trust = known[members].seconds, self._trust(known[members])
        return trust * believed + (1 - trust) * min(hope, believed)

    def observe(self, members: Members, seconds: float) -> None:
        """Learns what a level took; of the first two the smaller one holds."""
        cost = self._known.get(members) or _LevelCost(seconds, 0, self._num_seen)
        believed = cost.seconds
        if cost.count < 2:
            believed = min(believed, seconds)
        else:
            seconds = min(max(seconds, believed / LARGEST_CHANGE), believed * LARGEST_CHANGE)
            believed += max(COST_GAIN, 1 - self._trust(cost)) * (seconds - believed)
        self._num_seen += 1
        self._known[members] = _LevelCost(believed, cost.count + 1, self._num_seen)

    def _trust(self, cost: _LevelCost) -> float:
        return TRUST ** (self._num_seen - cost.seen_at)


@dataclass(frozen=True, eq=False)
class Gains:
    """How often tokens of one text are accepted that its first streams draft, the others left out.

    Attributes:
        accepted: for the first stream, the first two and so on, the expected number of positions
            where the drafted token is accepted; later steps count for more.
        num_positions: the number of positions, which are counted alike.
        rest_s: the seconds of a step beside drafting.
    """

    accepted: Float[np.ndarray, " counts"]
    num_positions: float = 0.0
    rest_s: float = 0.0

    @classmethod
    def none(cls, num_streams: int) -> "Gains":
        """Returns what is known before the first step."""
        return cls(np.zeros(num_streams))

    def after(
        self,
        evidence: Evidence,
        weights: Float[np.ndarray, " streams"],
        rest_s: float,
        *,
        is_greedy: bool,
    ) -> "Gains":
        """Returns what is known after one more step.

        Args:
            evidence: what the step showed.
            weights: those of its draft, by which the streams are ranked.
            rest_s: the seconds of the step beside drafting.
            is_greedy: whether the target's best token alone is accepted.
        """
        factor = CHANCE_OF_BEST if is_greedy else 1
        accepted = np.minimum(factor * _firsts(weights, evidence), evidence.likely_target_probs)
        known_s = self.rest_s or rest_s
        return Gains(
            MEMORY * self.accepted + accepted.sum(-1),
            MEMORY * self.num_positions + len(evidence.target_rows),
            known_s + COST_GAIN * (min(rest_s, LARGEST_CHANGE * known_s) - known_s),
        )

    def best_count(self, level_s: Sequence[float], depth: int) -> int:
        """Returns how many of the streams make the most tokens per second.

        What is accepted is that of chains; trees are judged as if they were some. One more position
        is taken to have needed all streams: little evidence leaves none out.

        Args:
            level_s: what a level takes with the first stream, the first two and so on.
            depth: the number of levels.
        """
        counts = range(1, len(level_s) + 1)
        rates = self.accepted.copy()
        rates[len(level_s) - 1 :] += 1
        rates /= self.num_positions + 1
        return max(
            counts,
            key=lambda count: (
                _tokens_per_step(rates[count - 1], depth)
                / (self.rest_s + depth * level_s[count - 1])
            ),
        )


def _firsts(
    weights: Float[np.ndarray, " streams"], evidence: Evidence
) -> Float[np.ndarray, "counts likely"]:
    """Returns what the first stream alone expected, the first two together and so on.

    They count alike if none has any weight.
    """
    order = np.argsort(-weights, kind="stable")
    ranked = weights[order] if weights.any() else np.ones(len(weights))
    sums = (ranked[:, None] * evidence.likely_draft_probs[order]).cumsum(0)
    return sums / ranked.cumsum()[:, None]


def _tokens_per_step(rate: float, depth: int) -> float:
    """Returns the expected tokens of a step whose levels are accepted at a rate."""
    return sum(rate**level for level in range(depth + 1))
