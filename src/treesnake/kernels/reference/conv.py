"""Short causal convolution, one filter a channel, followed by SiLU: over a text and over a tree.

Glossary: K is `conv_width`. The *history* is the last K - 1 inputs before the first one at hand,
zeros at the start of a text.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def causal_conv(
    inputs: Float[Tensor, "*batch tokens channels"],
    weight: Float[Tensor, "channels conv_width"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "*batch history channels"],
) -> Float[Tensor, "*batch tokens channels"]:
    """Convolves a text: output t sees inputs t - K + 1 to t."""
    rows = torch.cat([history, inputs], dim=-2)
    filters = weight[:, None].to(rows.dtype)
    offsets = None if bias is None else bias.to(rows.dtype)
    return F.silu(F.conv1d(rows.mT, filters, offsets, groups=len(weight)).mT)


def tree_conv(
    inputs: Float[Tensor, "nodes channels"],
    weight: Float[Tensor, "channels conv_width"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "history channels"],
    windows: Int[Tensor, "new conv_width"],
) -> Float[Tensor, "new channels"]:
    """Convolves nodes of a tree: each sees the last K inputs on its own path.

    `inputs` are those of all nodes; `windows` has, for each node that is wanted, the rows of
    [history | inputs] that it sees, its own last.
    """
    rows = torch.cat([history, inputs])
    total = rows.new_zeros(()) if bias is None else bias
    for taps, factor in zip(windows.T, weight.T, strict=True):
        total = total + rows[taps] * factor
    return F.silu(total)


def next_history(
    inputs: Float[Tensor, "*batch tokens channels"],
    history: Float[Tensor, "*batch history channels"],
) -> Float[Tensor, "*batch history channels"]:
    """Returns the history of what follows `inputs`."""
    return torch.cat([history, inputs], dim=-2)[..., inputs.shape[-2] :, :]
