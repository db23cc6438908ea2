"""Short causal convolution, one filter a channel, followed by SiLU: over a text and over a tree.

Glossary: K is `conv_width`. The *history* is the last K - 1 inputs before the first one at hand,
zeros at the start of a text.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.tree_rows import TreeRows


def causal_conv(
    inputs: Float[Tensor, "*batch tokens channels"],
    weight: Float[Tensor, "channels conv_width"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "*batch history channels"],
) -> Float[Tensor, "*batch tokens channels"]:
    """Convolves a text: output t sees inputs t - K + 1 to t."""
    return F.silu(causal_filter(inputs, weight, bias, history))


def causal_filter(
    inputs: Float[Tensor, "*batch tokens channels"],
    weight: Float[Tensor, "channels conv_width"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "*batch history channels"],
) -> Float[Tensor, "*batch tokens channels"]:
    """Convolves a text, without what follows a convolution."""
    rows = torch.cat([history, inputs], dim=-2)
    filters = weight[:, None].to(rows.dtype)
    offsets = None if bias is None else bias.to(rows.dtype)
    return F.conv1d(rows.mT, filters, offsets, groups=len(weight)).mT


def tree_conv(
    inputs: Float[Tensor, "slots rows channels"],
    weight: Float[Tensor, "channels conv_width"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "slots history channels"],
    new: TreeRows,
) -> Float[Tensor, "trees new channels"]:
    """Convolves the new nodes of some trees: each sees the last K inputs on its own path."""
    return F.silu(tree_filter(inputs, weight, bias, history, new))


def tree_filter(
    inputs: Float[Tensor, "slots rows channels"],
    weight: Float[Tensor, "channels conv_width"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "slots history channels"],
    new: TreeRows,
) -> Float[Tensor, "trees new channels"]:
    """Convolves the new nodes of some trees, without what follows a convolution."""
    num_history, slots = history.shape[1], new.slots[:, None]
    total = inputs.new_zeros(()) if bias is None else bias
    for taps, factor in zip(new.windows.unbind(2), weight.T, strict=True):
        committed = history[slots, taps.clamp(max=num_history - 1)]
        seen = inputs[slots, (taps - num_history).clamp(min=0)]
        total = total + torch.where((taps < num_history)[..., None], committed, seen) * factor
    return total


def next_history(
    inputs: Float[Tensor, "*batch tokens channels"],
    history: Float[Tensor, "*batch history channels"],
) -> Float[Tensor, "*batch history channels"]:
    """Returns the history of what follows `inputs`."""
    return torch.cat([history, inputs], dim=-2)[..., inputs.shape[-2] :, :]
