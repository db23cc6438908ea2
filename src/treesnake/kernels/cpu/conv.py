"""Short causal convolution, compiled: a range of channels at a time, over a text or a tree.

Names and axes are those of `treesnake.kernels.reference.conv`. Kernels read the weight as
(conv_width, channels), so that vectors run along the channels.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.kernels.cpu.activations import silu_range
from treesnake.kernels.cpu.jit import entry_point, kernel
from treesnake.kernels.cpu.linear import padded
from treesnake.kernels.reference.conv import causal_conv

__all__ = ["causal_conv", "convolve_range", "tree_conv"]


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
        for place in range(windows.shape[1]):
            source = windows[row, place]
            if source < num_history:
                _add_product(history, source, weight, place, begin, end, out, row)
            else:
                _add_product(inputs, source - num_history, weight, place, begin, end, out, row)
        silu_range(out, row, begin, end)


@kernel
def _add_product(rows, row, weight, place, begin, end, out, out_row):
    for channel in range(begin, end):
        out[out_row, channel] += weight[place, channel] * rows[row, channel]


@kernel
def copy_range(source, row, begin, end, target, target_row, target_begin):
    """Copies `source[row, begin:end]` to `target[target_row, target_begin:]`."""
    shift = target_begin - begin
    for place in range(begin, end):
        target[target_row, place + shift] = source[row, place]


@kernel
def keep_history(inputs, num_rows, history, begin, end):
    """Makes `history` that of what follows the first rows of `inputs`, for some channels."""
    num_history = history.shape[0]
    for place in range(num_history):
        source = num_rows + place
        if source < num_history:
            copy_range(history, source, begin, end, history, place, begin)
        else:
            copy_range(inputs, source - num_history, begin, end, history, place, begin)


@entry_point
def _tree_conv(inputs, history, windows, weight, bias, out):
    convolve_range(inputs, history, windows, weight, bias, 0, out.shape[1], out)


def tree_conv(
    inputs: Float[Tensor, "nodes channels"],
    weight: Float[Tensor, "channels conv_width"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "history channels"],
    windows: Int[Tensor, "new conv_width"],
) -> Float[Tensor, "new channels"]:
    """Convolves nodes of a tree: each sees the last K inputs on its own path."""
    channels = inputs.shape[1]
    out = np.zeros((windows.shape[0], padded(channels)), np.float32)
    _tree_conv(
        padded_array(inputs),
        padded_array(history),
        windows.numpy(),
        padded_array(weight.T),
        padded_array(inputs.new_zeros(channels) if bias is None else bias),
        out,
    )
    return unpadded(out, (windows.shape[0], channels))


def padded_array(x: Float[Tensor, "*rows width"], axes: int = 1) -> np.ndarray:
    """Returns a float32 array with the last axes padded with zeros to whole vectors.

    It is the tensor's own memory if nothing is to be done.
    """
    padding: list[int] = []
    for size in reversed(x.shape[-axes:]):
        padding += [0, padded(size) - size]
    x = x.detach().float()
    return (F.pad(x, padding) if any(padding) else x).contiguous().numpy()


def unpadded(array: np.ndarray, shape: Sequence[int]) -> Float[Tensor, "..."]:
    """Returns the tensor of this shape that an array was padded from."""
    return torch.from_numpy(array)[tuple(slice(0, size) for size in shape)]


def write_back(array: np.ndarray, x: Float[Tensor, "..."]) -> None:
    """Writes a padded array to the tensor that it came from, if that is not its own memory."""
    if array.ctypes.data != x.data_ptr():
        x.copy_(unpadded(array, x.shape))
