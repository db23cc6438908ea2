"""The best tokens of rows of logits, and the one that comes first, in one compiled call.

By numpy the same takes half a dozen calls. Behind a target's pass, which leaves the caches full of
weights, each of them takes longer to begin than to run.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numba import types
from numba.extending import intrinsic

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.jit import entry_point, kernel
from treesnake.waiting_times import GOLDEN, RARE, TOGETHER, WHICH, Noise

NO_NOISE = Noise(0, 0, 0.0)

BLOCK = 32
"""Columns that are looked at one by one if one of them may matter."""


class BestTokens(NamedTuple):
    """The best columns of each row, best first, -1 behind the last one that is possible.

    Attributes:
        columns: of the logits.
        log_probs: what softmax gives them, over all columns.
    """

    columns: Int[np.ndarray, "rows best"]
    log_probs: Float[np.ndarray, "rows best"]


def find_best(
    logits: Float[np.ndarray, "rows columns"],
    number: int,
    noise: Noise | None,
    token_ids: Int[np.ndarray, " columns"],
) -> BestTokens:
    """Returns the best tokens by logits, and by the noise of their place if there is any.

    Args:
        logits: float32, row after row without gaps.
        number: of tokens a row.
        noise: added as `treesnake.drafters.growing.with_noise` adds it.
        token_ids: the target's token of each column, -1 for none; read only for the noise.
    """
    best = BestTokens(
        np.empty((len(logits), number), np.int64), np.empty((len(logits), number), np.float32)
    )
    known = noise or NO_NOISE
    seed, place = np.uint64(known.seed), np.uint64(known.place)
    _find_best(logits, np.float32(known.temperature), seed, place, token_ids, *best)
    return best


def first_come(logits: Float[np.ndarray, "rows vocab"], row: int, noise: Noise) -> int:
    """Returns the token that comes first if tokens come with the rates that a row stands for.

    Does what `treesnake.waiting_times.WaitingTimes.first_come` does, without making probabilities.

    Args:
        logits: float32, row after row without gaps; a token of -inf never comes.
        row: which one.
        noise: of the place of the token, and the temperature that logits are divided by.
    """
    seed, place = np.uint64(noise.seed), np.uint64(noise.place)
    return _first_come(logits, row, float(noise.temperature), seed, place)


def compile_rankings() -> None:
    """Makes the code of the functions above ready, by calling them."""
    logits, noise = np.zeros((1, 1), np.float32), Noise(0, 0, 1.0)
    find_best(logits, 1, noise, np.zeros(1, np.int64))
    first_come(logits, 0, noise)


@entry_point
def _first_come(logits, row, temperature, seed, place):
    start, num_columns = _start_of(seed, place), logits.shape[1]
    top = _largest(logits, row, 0, num_columns)
    floor = top + np.float32(temperature * math.log(RARE))
    first, best = -1, -np.inf
    for begin in range(0, num_columns, BLOCK):
        end = min(begin + BLOCK, num_columns)
        if _largest(logits, row, begin, end) < floor:
            continue
        for column in range(begin, end):
            if logits[row, column] >= floor:
                log_rate = (np.float64(logits[row, column]) - top) / temperature
                chance = _uniform(start, column)
                if _may_be_first(chance, best - log_rate):
                    score = log_rate - math.log(-math.log(chance))
                    if score > best:
                        first, best = column, score
    together = -math.log(-math.log(_uniform(start, TOGETHER)))
    if math.log(RARE * num_columns) + together > best:  # the rest is no more than that
        rest = _sum_exponentials(logits, row, top, floor, np.float32(1 / temperature))
        if rest > 0 and math.log(rest) + together > best:
            return _rare(logits, row, top, floor, temperature, _uniform(start, WHICH))
    return first


@kernel
def _may_be_first(chance, behind):
    """Tells whether -log(chance) may be less than e**-behind; it mostly is not, by far.

    For -log(chance) is at least 1 - chance, and e**behind no less than the first terms of its sum.
    """
    behind = max(behind, 0.0)
    return (1 - chance) * (1 + behind + behind * behind / 2) < 1


@kernel
def _rare(logits, row, top, floor, temperature, chance):
    """Returns the token below the floor that a number between 0 and 1 stands for."""
    total = 0.0
    for column in range(logits.shape[1]):
        if logits[row, column] < floor:
            total += math.exp((np.float64(logits[row, column]) - top) / temperature)
    left, found = chance * total, -1
    for column in range(logits.shape[1]):
        if logits[row, column] < floor:
            rate = math.exp((np.float64(logits[row, column]) - top) / temperature)
            if rate > 0:
                left -= rate
                found = column
                if left < 0:
                    break
    return found


@entry_point
def _find_best(logits, temperature, seed, place, token_ids, columns, log_probs):
    start, num_columns = _start_of(seed, place), logits.shape[1]
    for row in range(logits.shape[0]):
        for rank in range(columns.shape[1]):
            columns[row, rank], log_probs[row, rank] = -1, -np.inf
        top = _largest(logits, row, 0, num_columns)
        if temperature > 0:
            floor = top + temperature * np.float32(math.log(RARE))
            total = _rank_noisy(
                logits, row, floor, temperature, start, token_ids, columns, log_probs
            )
        else:
            every, scale = np.float32(np.inf), np.float32(1)
            total = top + np.float32(math.log(_sum_exponentials(logits, row, top, every, scale)))
            _rank(logits, row, columns, log_probs)
        for rank in range(columns.shape[1]):
            log_probs[row, rank] -= total


@kernel
def _rank(logits, row, columns, scores):
    last = columns.shape[1] - 1
    for column in range(logits.shape[1]):
        if logits[row, column] > scores[row, last]:
            _insert(logits[row, column], column, row, columns, scores)


@kernel
def _rank_noisy(logits, row, floor, temperature, start, token_ids, columns, scores):
    """Ranks columns by logits with noise; returns the logarithm of the sum of exponentials."""
    last = columns.shape[1] - 1
    top, total = np.float32(-np.inf), np.float64(0)
    for column in range(logits.shape[1]):
        if logits[row, column] < floor:
            continue
        score = logits[row, column]
        if token_ids[column] >= 0:
            wait = -math.log(_uniform(start, token_ids[column]))
            score -= np.float32(temperature * math.log(wait))
        if score > top:
            total *= math.exp(top - score)
            top = score
        total += math.exp(score - top)
        if score > scores[row, last]:
            _insert(score, column, row, columns, scores)
    return top + np.float32(math.log(total))


@kernel
def _insert(score, column, row, columns, scores):
    """Puts a column where its score belongs, behind equal ones; the last one falls out."""
    rank = columns.shape[1] - 1
    while rank > 0 and score > scores[row, rank - 1]:
        scores[row, rank] = scores[row, rank - 1]
        columns[row, rank] = columns[row, rank - 1]
        rank -= 1
    scores[row, rank] = score
    columns[row, rank] = column


@kernel
def _uniform(start, number):
    """Does what `treesnake.waiting_times.uniform` does, from its start on."""
    bits = _mixed(start + np.uint64(number) * GOLDEN)
    return (np.float64(bits >> np.uint64(12)) + 0.5) * 2.0**-52


@kernel
def _start_of(seed, place):
    """Does what `treesnake.waiting_times.start_of` does."""
    return _mixed(_mixed(seed) ^ (place * GOLDEN))


@kernel
def _mixed(bits):
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@kernel
def _largest(logits, row, begin, end):
    """Returns the largest logit of some columns of a row."""
    whole = end - (end - begin) % simd.LANES
    top = _largest_in_vectors(logits, row, begin, whole)
    for column in range(whole, end):
        top = max(top, logits[row, column])
    return top


@kernel
def _sum_exponentials(logits, row, top, below, scale):
    """Returns the sum of e**((logit - top) * scale) over the logits of a row below a number."""
    num_columns = logits.shape[1]
    whole = num_columns - num_columns % simd.LANES
    total = _sum_exponentials_in_vectors(logits, row, whole, top, below, scale)
    for column in range(whole, num_columns):
        if logits[row, column] < below:
            total += np.float32(math.exp((logits[row, column] - top) * scale))
    return total


@intrinsic
def _largest_in_vectors(typing_context, logits, row, begin, end):
    """Returns the largest logit of some columns, as many as fill vectors; -inf if they are none."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        start = simd.row_pointer(builder, array, arguments[1])

        def keep_larger(column: Any, tops: Any) -> list[Any]:
            values = simd.load(builder, builder.gep(start, [column]), types.float32)
            return [simd.larger(builder, values, tops[0])]

        nothing = [simd.constant(-math.inf)]
        begin, end = arguments[2:]
        tops = simd.loop(builder, begin, end, simd.LANES, nothing, keep_larger)
        return simd.largest_lane(builder, tops[0])

    return types.float32(logits, types.intp, types.intp, types.intp), generate


@intrinsic
def _sum_exponentials_in_vectors(typing_context, logits, row, end, top, below, scale):
    """Does what `_sum_exponentials` does, before a column."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        start = simd.row_pointer(builder, array, arguments[1])
        top, below, scale = (simd.splat(builder, number) for number in arguments[3:])

        def add(column: Any, totals: Any) -> list[Any]:
            values = simd.load(builder, builder.gep(start, [column]), types.float32)
            scaled = builder.fmul(builder.fsub(values, top), scale)
            is_below = builder.fcmp_ordered("<", values, below)
            terms = builder.select(is_below, simd.exponential(builder, scaled), simd.ZERO)
            return [builder.fadd(totals[0], terms)]

        totals = simd.loop(builder, simd.index(0), arguments[2], simd.LANES, [simd.ZERO], add)
        return simd.add_lanes(builder, totals)[0]

    numbers = [types.float32] * 3
    return types.float32(logits, types.intp, types.intp, *numbers), generate
