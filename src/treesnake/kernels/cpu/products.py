"""What layers multiply with: float matrices or grouped weights, by one name each.

A float matrix is (outputs, inputs), see `linear`. A grouped weight is a table of blocks, see
`grouped`; its products read activations that `round_inputs` has rounded. Which of the two a weight
is shows in its type, so that a network is compiled for what it has.
"""

from numba import types

from treesnake.kernels.cpu.grouped import (
    BLOCK_OUTPUTS,
    grouped_rows,
    round_row,
    widen_output,
)
from treesnake.kernels.cpu.jit import by_type
from treesnake.kernels.cpu.linear import linear_rows, widen_row
from treesnake.kernels.cpu.team import finish_unit, next_unit, wait
from treesnake.kernels.grouped_weight import GROUP


def count_outputs(weight):
    """Returns the outputs of a weight, whole blocks of them."""
    raise NotImplementedError("for compiled code only")


def round_input(x, row, weight, rounded):
    """Rounds a row of `x` to `rounded` if the weight's products read it there."""
    raise NotImplementedError("for compiled code only")


def round_inputs(barrier, step, x, num_rows, weight, rounded):
    """Rounds rows of `x` to `rounded` if the weight's products read them there: a step, or none."""
    raise NotImplementedError("for compiled code only")


def multiply_rows(x, rounded, num_rows, weight, begin, end, out, adds):
    """Computes outputs begin..end of the first rows of a product, or adds them to `out`."""
    raise NotImplementedError("for compiled code only")


def embed_row(weight, token, width, out, row):
    """Writes `width` inputs of a weight's output as floats to a row of `out`: an embedding."""
    raise NotImplementedError("for compiled code only")


def _is_grouped(weight):
    return isinstance(weight.dtype, types.Record)


@by_type(count_outputs)
def _count_outputs(weight):
    def count_blocks(weight):
        return weight.shape[0] * BLOCK_OUTPUTS

    def count_rows(weight):
        return weight.shape[0]

    return count_blocks if _is_grouped(weight) else count_rows


@by_type(round_input)
def _round_input(x, row, weight, rounded):
    def round_one(x, row, weight, rounded):
        round_row(x, row, rounded)

    def keep_floats(x, row, weight, rounded):
        pass

    return round_one if _is_grouped(weight) else keep_floats


@by_type(round_inputs)
def _round_inputs(barrier, step, x, num_rows, weight, rounded):
    def round_rows(barrier, step, x, num_rows, weight, rounded):
        row = next_unit(barrier, step)
        while row < num_rows:
            round_row(x, row, rounded)
            row = finish_unit(barrier, step)
        return wait(barrier, step, num_rows)

    def keep_floats(barrier, step, x, num_rows, weight, rounded):
        return step

    return round_rows if _is_grouped(weight) else keep_floats


@by_type(multiply_rows)
def _multiply_rows(x, rounded, num_rows, weight, begin, end, out, adds):
    def multiply_integers(x, rounded, num_rows, weight, begin, end, out, adds):
        groups = (x.shape[1] + GROUP - 1) // GROUP
        grouped_rows(rounded, num_rows, weight, begin, end, groups, out, adds)

    def multiply_floats(x, rounded, num_rows, weight, begin, end, out, adds):
        linear_rows(x, num_rows, weight, begin, end, out, adds)

    return multiply_integers if _is_grouped(weight) else multiply_floats


@by_type(embed_row)
def _embed_row(weight, token, width, out, row):
    def embed_integers(weight, token, width, out, row):
        widen_output(weight, token, width, out, row)

    def embed_floats(weight, token, width, out, row):
        widen_row(weight, token, out, row)

    return embed_integers if _is_grouped(weight) else embed_floats
