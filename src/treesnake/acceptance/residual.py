"""What is left of a distribution once a proposal was rejected."""

from jaxtyping import Float
from torch import Tensor


def residual(
    remaining: Float[Tensor, " vocab"], proposal: Float[Tensor, " vocab"]
) -> Float[Tensor, " vocab"]:
    """Returns max(remaining - proposal, 0), normalized.

    Where nothing is left the two are equal but for rounding, and so a rejection had a probability
    of that order; then `remaining` is returned.
    """
    positive = (remaining - proposal).clamp(min=0)
    mass = positive.sum()
    return positive / mass if mass > 0 else remaining / remaining.sum()
