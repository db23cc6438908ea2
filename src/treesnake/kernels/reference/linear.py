"""Linear layers with weights of any dtype."""

from jaxtyping import Float
from torch import Tensor


def linear(
    x: Float[Tensor, "rows inputs"], weight: Float[Tensor, "outputs inputs"]
) -> Float[Tensor, "rows outputs"]:
    """Multiplies float32 rows with a weight, in float32."""
    return x @ weight.float().T
