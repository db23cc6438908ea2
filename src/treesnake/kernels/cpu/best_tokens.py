"""The best tokens of rows of logits, in one compiled call.

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
from treesnake.waiting_times import GOLDEN, RARE, Noise, start_of

NO_NOISE = Noise(0, 0, 0.0)


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
    start = start_of(known.seed, known.place)[0]
    _find_best(logits, np.float32(known.temperature), start, token_ids, *best)
    return best


@entry_point
def _find_best(logits, temperature, start, token_ids, columns, log_probs):
    for row in range(logits.shape[0]):
        for rank in range(columns.shape[1]):
            columns[row, rank], log_probs[row, rank] = -1, -np.inf
        top = _largest(logits, row)
        if temperature > 0:
            floor = top + temperature * np.float32(math.log(RARE))
            total = _rank_noisy(
                logits, row, floor, temperature, start, token_ids, columns, log_probs
            )
        else:
            total = top + np.float32(math.log(_sum_exponentials(logits, row, top)))
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
    bits = start + np.uint64(number) * GOLDEN
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return (np.float64(bits >> np.uint64(12)) + 0.5) * 2.0**-52


@kernel
def _largest(logits, row):
    num_columns = logits.shape[1]
    whole = num_columns - num_columns % simd.LANES
    top = _largest_in_vectors(logits, row, whole)
    for column in range(whole, num_columns):
        top = max(top, logits[row, column])
    return top


@kernel
def _sum_exponentials(logits, row, top):
    """Returns the sum of e**(logit - top) over a row."""
    num_columns = logits.shape[1]
    whole = num_columns - num_columns % simd.LANES
    total = _sum_exponentials_in_vectors(logits, row, whole, top)
    for column in range(whole, num_columns):
        total += np.float32(math.exp(logits[row, column] - top))
    return total


@intrinsic
def _largest_in_vectors(typing_context, logits, row, end):
    """Returns the largest logit of a row before a column, -inf if that is 0."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        start = simd.row_pointer(builder, array, arguments[1])

        def keep_larger(column: Any, tops: Any) -> list[Any]:
            values = simd.load(builder, builder.gep(start, [column]), types.float32)
            return [simd.larger(builder, values, tops[0])]

        nothing = [simd.constant(-math.inf)]
        tops = simd.loop(builder, simd.index(0), arguments[2], simd.LANES, nothing, keep_larger)
        return simd.largest_lane(builder, tops[0])

    return types.float32(logits, types.intp, types.intp), generate


@intrinsic
def _sum_exponentials_in_vectors(typing_context, logits, row, end, top):
    """Returns the sum of e**(logit - top) over a row, before a column."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        start, top = (
            simd.row_pointer(builder, array, arguments[1]),
            simd.splat(builder, arguments[3]),
        )

        def add(column: Any, totals: Any) -> list[Any]:
            values = simd.load(builder, builder.gep(start, [column]), types.float32)
            return [builder.fadd(totals[0], simd.exponential(builder, builder.fsub(values, top)))]

        totals = simd.loop(builder, simd.index(0), arguments[2], simd.LANES, [simd.ZERO], add)
        return simd.add_lanes(builder, totals)[0]

    return types.float32(logits, types.intp, types.intp, types.float32), generate
