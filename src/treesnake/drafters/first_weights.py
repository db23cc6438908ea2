"""The weights that a text begins with, learned from how earlier texts ended.

Texts of one kind want the same streams. So a text begins with the mean of the weights that earlier
ones ended with; later ones count for more. Where texts want different streams, the mean is close to
equal weights, and nothing is lost.
"""

import numpy as np
from jaxtyping import Float

MEMORY = 0.9
"""What a text counts for after each later one."""

UNKNOWN = 0.3
"""Equal weights are counted like so many texts."""


class FirstWeights:
    """The mean of the weights that texts ended with.

    A text may still be going on: it counts with the weights that it has.
    """

    def __init__(self) -> None:
        self._ends: Float[np.ndarray, " streams"] | float = 0.0

    def weights(self, num_streams: int) -> Float[np.ndarray, " streams"]:
        """Returns those of the next text; they sum to 1."""
        counted = self._ends + np.full(num_streams, UNKNOWN / num_streams)
        return counted / counted.sum()

    def count(
        self,
        weights: Float[np.ndarray, " streams"],
        before: Float[np.ndarray, " streams"] | None,
    ) -> None:
        """Counts a text with its weights.

        Args:
            weights: those that it has now.
            before: those that it was counted with, which these replace; None the first time.
        """
        if before is None:
            self._ends = MEMORY * self._ends + weights
        else:  # which other texts may have made less of
            self._ends = np.maximum(self._ends + weights - before, 0)
