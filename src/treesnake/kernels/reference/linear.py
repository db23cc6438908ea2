"""Linear layers with rounded weights."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor


def quantize_rows(
    weight: Float[Tensor, "outputs inputs"],
) -> tuple[Int8[Tensor, "outputs inputs"], Float[Tensor, " outputs"]]:
    """Rounds each row to multiples of a scale of its own, so that its largest magnitude is 127.

    A row with a value that is no finite number gets such a scale too, so that it stays visible. A
    row whose scale would be no normal number becomes zeros.
    """
    scale = weight.float().abs().amax(dim=1) / 127
    is_tiny = scale < torch.finfo(torch.float32).tiny
    scale = torch.where(is_tiny, torch.ones_like(scale), scale)
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


def linear(
    x: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"] | Int8[Tensor, "outputs inputs"],
    scale: Float[Tensor, " outputs"] | None = None,
) -> Float[Tensor, "rows outputs"]:
    """Multiplies float32 rows with a weight of any dtype, in float32."""
    product = x @ weight.float().T
    return product if scale is None else product * scale
