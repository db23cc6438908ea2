"""Short causal convolution, compiled: a range of channels at a time, over a text or a tree.

Names and axes are those of `treesnake.kernels.reference.conv`, but that the weight is
(conv_width, channels), so that vectors run along the channels.
"""

from treesnake.kernels.cpu.activations import silu_range
from treesnake.kernels.cpu.jit import kernel


@kernel
def convolve_range(inputs, history, windows, weight, bias, begin, end, out):
    """Convolves channels begin..end, whole vectors, of the last nodes of a tree.

    `inputs` (nodes, channels) and `history` (conv_width - 1, channels) are what `windows`
    (new, conv_width) counts rows of, the history first; `out` is (new, channels).
    """
    num_history = history.shape[0]
    for row in range(windows.shape[0]):
        for channel in range(begin, end):
            out[row, channel] = bias[channel]
        for step in range(windows.shape[1]):
            source = windows[row, step]
            if source < num_history:
                _add_product(history, source, weight, step, begin, end, out, row)
            else:
                _add_product(inputs, source - num_history, weight, step, begin, end, out, row)
        silu_range(out, row, begin, end)


@kernel
def _add_product(rows, row, weight, step, begin, end, out, out_row):
    for channel in range(begin, end):
        out[out_row, channel] += weight[step, channel] * rows[row, channel]


@kernel
def copy_range(source, row, begin, end, target, target_row, target_begin):
    """Copies `source[row, begin:end]` to `target[target_row, target_begin:]`."""
    shift = target_begin - begin
    for column in range(begin, end):
        target[target_row, column + shift] = source[row, column]


@kernel
def keep_history(inputs, num_rows, history, begin, end):
    """Makes `history` that of what follows the first rows of `inputs`, for some channels."""
    num_history = history.shape[0]
    for step in range(num_history):
        source = num_rows + step
        if source < num_history:
            copy_range(history, source, begin, end, history, step, begin)
        else:
            copy_range(inputs, source - num_history, begin, end, history, step, begin)


@kernel
def keep_path(inputs, path, history):
    """Makes `history` that of what follows a path, whose nodes are rows of `inputs`."""
    num_history, num_channels = history.shape
    for step in range(num_history):
        source = path.shape[0] + step
        if source < num_history:
            copy_range(history, source, 0, num_channels, history, step, 0)
        else:
            copy_range(inputs, path[source - num_history], 0, num_channels, history, step, 0)
