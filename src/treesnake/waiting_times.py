"""Noise that belongs to places of a text: whoever draws there by it, draws alike.

A token that comes at rate p first comes after a time w / p, where w has the exponential
distribution. Of all tokens, the one that comes first has the distribution p. Who knows the times w
and a distribution near p can guess which one that is (Daliri, Musco and Suresh 2024, "Coupling
without Communication and Drafter-Invariant Speculative Decoding"). -log(w) is Gumbel noise.

Most tokens of a vocabulary are so improbable that their times need not be known one by one: they
come together, as one more token that stands for them all.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

RARE = 2.0**-14
"""Less probable tokens come together."""

TOGETHER, WHICH = 1 << 40, 1 << 41
"""The numbers, beyond those of tokens, whose noise says when they come and which one it is."""


class Noise(NamedTuple):
    """The noise by which a target draws, from a place of the text on.

    Attributes:
        seed: of the noise, from 0 to 2^64 - 1.
        place: of the next token.
        temperature: of the sample, above 0.
    """

    seed: int
    place: int
    temperature: float


class WaitingTimes:
    """The waiting times of all tokens at each place, each a function of seed, place and token.

    Args:
        seed: a number from 0 to 2^64 - 1.

    Attributes:
        seed: that number.
        place: the number of the next place.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.place = 0

    def at(self, depth: int, token_ids: Int[np.ndarray, " tokens"]) -> Float[np.ndarray, " tokens"]:
        """Returns the times of some tokens, `depth` places from here."""
        return -np.log(uniform(self.seed, self.place + depth, token_ids))

    def first_come(self, probs: Float[np.ndarray, " vocab"], depth: int) -> int:
        """Returns the token that comes first, `depth` places from here.

        Args:
            probs: of all tokens; they need not be normalized.
            depth: of the place.
        """
        bound = RARE * probs.max()
        likely = np.flatnonzero(probs >= bound)
        rates = probs[likely].astype(np.float64)
        chance = uniform(self.seed, self.place + depth, np.append(likely, (TOGETHER, WHICH)))
        times = -np.log(chance[:-1])
        sooner = rates / times[:-1]
        first = int(sooner.argmax())
        rest = float(probs.sum(dtype=np.float64) - rates.sum())
        if rest > times[-1] * sooner[first]:
            below = np.cumsum(np.where(probs < bound, probs, 0), dtype=np.float64)
            if below[-1] > 0:
                return first_beyond(below, chance[-1] * below[-1])
        return int(likely[first])

    def noise(self, temperature: float, depth: int = 0) -> Noise:
        """Returns what compiled code needs to work out the times `depth` places from here."""
        return Noise(self.seed, self.place + depth, temperature)

    def advance(self, num_tokens: int) -> None:
        """Goes on by so many places."""
        self.place += num_tokens


def first_beyond(cumulative: Float[np.ndarray, " sums"], point: float) -> int:
    """Returns where sums first exceed a point, or at the latest where they are whole."""
    index = np.searchsorted(cumulative, point, side="right")
    return int(min(index, np.searchsorted(cumulative, cumulative[-1])))


def uniform(
    seed: int, place: int, numbers: Int[np.ndarray, " numbers"]
) -> Float[np.ndarray, " numbers"]:
    """Returns for each number one between 0 and 1, both left out, that looks drawn by chance.

    It is the output of SplitMix64 (Steele, Lea and Flood 2014) that comes at that number, from a
    start that seed and place make: 52 bits, the same on every machine.
    """
    bits = _mixed(start_of(seed, place) + numbers.astype(np.uint64) * GOLDEN)
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def start_of(seed: int, place: int) -> UInt64[np.ndarray, "1"]:
    """Returns where the numbers of a place start."""
    return _mixed(_mixed(np.array([seed], np.uint64)) ^ np.array([place], np.uint64) * GOLDEN)


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(words: UInt64[np.ndarray, " words"]) -> UInt64[np.ndarray, " words"]:
    """Returns words of which each bit depends on all bits of the given ones."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
