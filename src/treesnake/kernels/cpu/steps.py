"""Steps that networks have in common, for a team of threads (`treesnake.kernels.cpu.team`)."""

from treesnake.kernels.cpu.jit import kernel
from treesnake.kernels.cpu.linear import COLUMN_BLOCK
from treesnake.kernels.cpu.norm import rms_norm_row
from treesnake.kernels.cpu.products import (
    count_outputs,
    embed_row,
    multiply_rows,
    round_input,
    round_inputs,
)
from treesnake.kernels.cpu.team import finish_unit, next_unit, wait

UNITS_PER_THREAD = 4
"""Units of a step for each thread, if they are large enough, so that no thread waits for long."""

LARGEST_BLOCK = 8 * COLUMN_BLOCK


@kernel
def block_size(num_outputs, barrier):
    """Returns how many outputs a unit has: whole tiles and vectors, and units for every thread."""
    block = num_outputs // (UNITS_PER_THREAD * barrier.size) // COLUMN_BLOCK * COLUMN_BLOCK
    return min(max(block, COLUMN_BLOCK), LARGEST_BLOCK)


@kernel
def embed(barrier, step, token_ids, embedding, width, out):
    """Looks up embeddings of so many inputs."""
    num_rows = token_ids.shape[0]
    row = next_unit(barrier, step)
    while row < num_rows:
        embed_row(embedding, token_ids[row], width, out, row)
        row = finish_unit(barrier, step)
    return wait(barrier, step, num_rows)


@kernel
def norm(barrier, step, x, num_rows, norm_weight, epsilon, out, weight, rounded):
    """Norms rows, and rounds them if the weight that they are multiplied with needs that."""
    row = next_unit(barrier, step)
    while row < num_rows:
        rms_norm_row(x, row, norm_weight, epsilon, out)
        round_input(out, row, weight, rounded)
        row = finish_unit(barrier, step)
    return wait(barrier, step, num_rows)


@kernel
def project(barrier, step, x, num_rows, weight, bias, rounded, out, adds):
    """Multiplies rows with a weight, or adds the products to `out`; a bias may have no length.

    That is two steps if the weight needs rounded inputs, for which `rounded` has room.
    """
    step = round_inputs(barrier, step, x, num_rows, weight, rounded)
    return multiply(barrier, step, x, num_rows, weight, bias, rounded, out, adds)


@kernel
def multiply(barrier, step, x, num_rows, weight, bias, rounded, out, adds):
    """Does the same with rows that are rounded already, if the weight needs that: one step."""
    num_outputs = count_outputs(weight)
    block = block_size(num_outputs, barrier)
    num_units = (num_outputs + block - 1) // block
    unit = next_unit(barrier, step)
    while unit < num_units:
        begin = unit * block
        end = min(begin + block, num_outputs)
        multiply_rows(x, rounded, num_rows, weight, begin, end, out, adds)
        add_bias(bias, num_rows, begin, end, out)
        unit = finish_unit(barrier, step)
    return wait(barrier, step, num_units)


@kernel
def add_bias(bias, num_rows, begin, end, out):
    """Adds a bias to columns begin..end, as far as it is long."""
    for row in range(num_rows):
        for column in range(begin, min(end, bias.shape[0])):
            out[row, column] += bias[column]
