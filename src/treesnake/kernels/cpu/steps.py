"""Steps that networks have in common, for a team of threads (`treesnake.kernels.cpu.team`)."""

from treesnake.kernels.cpu.jit import kernel
from treesnake.kernels.cpu.linear import COLUMN_BLOCK, add_linear_rows, linear_rows, widen_row
from treesnake.kernels.cpu.norm import rms_norm_row
from treesnake.kernels.cpu.team import finish, take, wait

UNITS_PER_THREAD = 4
"""Units of a step for each thread, if they are large enough, so that no thread waits for long."""

LARGEST_BLOCK = 8 * COLUMN_BLOCK


@kernel
def block_size(num_outputs, crew):
    """Returns how many outputs a unit has: whole tiles and vectors, and units for every thread."""
    block = num_outputs // (UNITS_PER_THREAD * crew.size) // COLUMN_BLOCK * COLUMN_BLOCK
    return min(max(block, COLUMN_BLOCK), LARGEST_BLOCK)


@kernel
def embed(crew, step, token_ids, embedding, scale, out):
    """Looks up embeddings."""
    num_rows = token_ids.shape[0]
    row = take(crew, step)
    while row < num_rows:
        token = token_ids[row]
        widen_row(embedding, token, scale[token], out, row)
        row = finish(crew, step)
    return wait(crew, step, num_rows)


@kernel
def norm(crew, step, x, num_rows, weight, epsilon, out):
    """Norms rows."""
    row = take(crew, step)
    while row < num_rows:
        rms_norm_row(x, row, weight, epsilon, out)
        row = finish(crew, step)
    return wait(crew, step, num_rows)


@kernel
def project(crew, step, x, num_rows, weight, scale, bias, out):
    """Multiplies rows with a weight; a bias of no length is no bias."""
    num_outputs = weight.shape[0]
    block = block_size(num_outputs, crew)
    num_units = (num_outputs + block - 1) // block
    unit = take(crew, step)
    while unit < num_units:
        begin = unit * block
        end = min(begin + block, num_outputs)
        linear_rows(x, num_rows, weight, begin, end, out, scale)
        add_bias(bias, num_rows, begin, end, out)
        unit = finish(crew, step)
    return wait(crew, step, num_units)


@kernel
def add_projection(crew, step, x, num_rows, weight, scale, bias, out):
    """The same, added to `out`."""
    num_outputs = weight.shape[0]
    block = block_size(num_outputs, crew)
    num_units = (num_outputs + block - 1) // block
    unit = take(crew, step)
    while unit < num_units:
        begin = unit * block
        end = min(begin + block, num_outputs)
        add_linear_rows(x, num_rows, weight, begin, end, out, scale)
        add_bias(bias, num_rows, begin, end, out)
        unit = finish(crew, step)
    return wait(crew, step, num_units)


@kernel
def add_bias(bias, num_rows, begin, end, out):
    """Adds a bias, if there is one, to columns begin..end."""
    if bias.shape[0] > 0:
        for row in range(num_rows):
            for place in range(begin, end):
                out[row, place] += bias[place]
