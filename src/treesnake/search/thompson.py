"""Thompson sampling over a list of shapes."""

import random
from collections.abc import Sequence

from treesnake.outcome import Step
from treesnake.search.arms import ARMS, ArmSearch, DiscountedRates
from treesnake.shape import Shape


class ThompsonSearch(ArmSearch):
    """Draws a rate for each shape from its distribution, and takes the shape with the highest.

    The distribution is normal: around the measured tokens per second, with their standard error.
    Sums decay, so the error grows again (Thompson 1933; Raj and Kalyani 2017).

    Args:
        arms: the shapes.
        discount: what a step counts after each later one.
        seed: of the draws. They decide on shapes alone, never on text.
    """

    def __init__(
        self, arms: Sequence[Shape] = ARMS, *, discount: float = 0.99, seed: int = 0
    ) -> None:
        super().__init__()
        self._rates = DiscountedRates(arms, discount)
        self._random = random.Random(seed)

    def _pick(self) -> Shape:
        """Returns the arm with the highest draw, or one that was never tried."""
        if untried := self._rates.untried:
            return untried
        rates = self._rates.by_arm
        gauss = self._random.gauss
        return max(rates, key=lambda arm: gauss(rates[arm].mean, rates[arm].standard_error))

    def _learn(self, step: Step) -> None:
        """Takes the step's tokens and seconds into the rate of its arm."""
        self._rates.observe(step)
