"""Root mean square norms, rotary positions and the gate of an MLP."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def rms_norm(
    x: Float[Tensor, "*rows width"], weight: Float[Tensor, " width"], epsilon: float
) -> Float[Tensor, "*rows width"]:
    """Divides each row by its root mean square, in float32, and returns to the dtype of `x`.

    With a float32 weight, that is the dtype of the product with it, too.
    """
    exact = x.float()
    normed = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + epsilon)
    return (weight * normed.to(weight.dtype)).to(x.dtype)


def rotation(
    positions: Int[Tensor, " nodes"], inverse_frequencies: Float[Tensor, " pairs"]
) -> tuple[Float[Tensor, "nodes pairs"], Float[Tensor, "nodes pairs"]]:
    """Returns cosines and sines of the angles that `rotate` turns by at each position."""
    angles = positions.float()[:, None] * inverse_frequencies
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "nodes heads head_dim"],
    cosines: Float[Tensor, "nodes pairs"],
    sines: Float[Tensor, "nodes pairs"],
) -> Float[Tensor, "nodes heads head_dim"]:
    """Turns the pairs (i, i + pairs) of every head; what lies behind the pairs stays (RoPE)."""
    pairs = cosines.shape[-1]
    first, second, rest = x.split([pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
    cosines, sines = cosines[:, None].to(x.dtype), sines[:, None].to(x.dtype)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return torch.cat([*turned, rest], dim=-1)


def gate(
    gate_up: Float[Tensor, "*rows twice_width"], activation: Literal["silu", "gelu_tanh"] = "silu"
) -> Float[Tensor, "*rows width"]:
    """Multiplies the second half of each row with an activation of the first."""
    first, second = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(first) * second
    return F.gelu(first, approximate="tanh") * second
