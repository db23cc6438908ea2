"""Noise that belongs to places of a text: whoever draws there by it, draws alike.

A token that comes at rate p first comes after a time w / p, where w has the exponential
distribution. Of all tokens, the one that comes first has the distribution p. Who knows the times w
and a distribution near p can guess which one that is (Daliri, Musco and Suresh 2024, "Coupling
without Communication and Drafter-Invariant Speculative Decoding"). -log(w) is Gumbel noise.
"""

import numpy as np
from jaxtyping import Float

SMALL = 2.0**-6
"""Below, log(1 - u) in single precision would lose digits that decide who comes first."""


class WaitingTimes:
    """The waiting times of all tokens at each place, each a function of seed, place and token.

    A place is worked out once, for as many tokens as were asked for first.

    Args:
        seed: a number from 0 to 2^64 - 1.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._place = 0
        self._times: dict[int, Float[np.ndarray, " tokens"]] = {}

    def at(self, depth: int, num_tokens: int) -> Float[np.ndarray, " num_tokens"]:
        """Returns the times of the first `num_tokens` tokens, `depth` places from here."""
        place = self._place + depth
        times = self._times.get(place)
        if times is None or len(times) < num_tokens:
            times = self._times[place] = waiting_times(self._seed, place, num_tokens)
        return times[:num_tokens]

    def advance(self, num_tokens: int) -> None:
        """Goes on by so many places, and forgets those before."""
        self._place += num_tokens
        self._times = {place: times for place, times in self._times.items() if place >= self._place}


def waiting_times(seed: int, place: int, num_tokens: int) -> Float[np.ndarray, " num_tokens"]:
    """Returns numbers with the exponential distribution of mean 1, none of them 0 or infinite.

    Fewer tokens have the first of the same numbers. They come from Philox, whose numbers are the
    same on every machine and in every version of numpy, 32 bits for each.
    """
    bits = np.random.Philox(key=seed, counter=[0, place, 0, 0])
    words = bits.random_raw((num_tokens + 1) // 2).astype("<u8", copy=False).view("<u4")
    uniform = words[:num_tokens].astype(np.float32)
    uniform += np.float32(0.5)
    uniform *= np.float32(2.0**-32)
    np.minimum(uniform, np.float32(1 - 2.0**-24), out=uniform)
    small = np.flatnonzero(uniform < SMALL)
    precise = -np.log1p(-uniform[small].astype(np.float64))
    np.subtract(np.float32(1), uniform, out=uniform)
    np.log(uniform, out=uniform)
    np.negative(uniform, out=uniform)
    uniform[small] = precise
    return uniform
