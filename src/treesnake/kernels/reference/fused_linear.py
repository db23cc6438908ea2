"""Linear layers with what stands before and behind them, for a few rows."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.reference.norm import gate, rms_norm


def linear(
    x: Float[Tensor, "rows inputs"], weight: Float[Tensor, "outputs inputs"]
) -> Float[Tensor, "rows outputs"]:
    """Projects rows."""
    return F.linear(x, weight)


def softplus_linear(
    x: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"],
) -> Float[Tensor, "rows outputs"]:
    """Projects rows and makes the numbers positive."""
    return F.softplus(F.linear(x, weight, bias))


def normed_linear(
    x: Float[Tensor, "rows inputs"],
    norm: Float[Tensor, " inputs"],
    epsilon: float,
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Float[Tensor, "rows outputs"]:
    """Projects rows behind a root mean square norm."""
    return F.linear(rms_norm(x, norm, epsilon), weight, bias)


def normed_gate(
    x: Float[Tensor, "rows inputs"],
    norm: Float[Tensor, " inputs"],
    epsilon: float,
    gate_up: Float[Tensor, "twice_outputs inputs"],
) -> Float[Tensor, "rows outputs"]:
    """Projects rows behind a norm twice, and gates the second projection by SiLU of the first."""
    return gate(F.linear(rms_norm(x, norm, epsilon), gate_up))


def add_linear(
    residual: Float[Tensor, "rows outputs"],
    x: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
) -> Float[Tensor, "rows outputs"]:
    """Adds projected rows to others."""
    return residual + F.linear(x, weight)


def add_gated_linear(
    residual: Float[Tensor, "rows outputs"],
    x: Float[Tensor, "rows inputs"],
    gates: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
) -> Float[Tensor, "rows outputs"]:
    """Gates rows by SiLU of others, projects them and adds the result."""
    return residual + F.linear(x * F.silu(gates), weight)


def add_gated_normed_linear(
    residual: Float[Tensor, "rows outputs"],
    x: Float[Tensor, "rows inputs"],
    gates: Float[Tensor, "rows inputs"],
    norm: Float[Tensor, " inputs"],
    epsilon: float,
    weight: Float[Tensor, "outputs inputs"],
) -> Float[Tensor, "rows outputs"]:
    """Gates rows by SiLU of others, norms them, projects them and adds the result."""
    return residual + F.linear(rms_norm(x * F.silu(gates), norm, epsilon), weight)
