"""Thompson sampling over a list of shapes."""

import random
from collections.abc import Sequence

from treesnake.errors import InvalidInputError
from treesnake.outcome import Step
from treesnake.search.arms import ARMS, MeasuredRate, check_arms
from treesnake.shape import Shape


class ThompsonSearch:
    """Draws a rate for each shape from what is believed of it, and takes the highest.

    The belief is a normal distribution around the measured tokens per second with their standard
    error; sums decay, so that doubt comes back (Thompson 1933; Raj and Kalyani 2017).

    Args:
        arms: the shapes.
        discount: what a step counts after each later one.
        seed: of the draws. They decide on shapes alone, never on text.
    """

    def __init__(
        self, arms: Sequence[Shape] = ARMS, *, discount: float = 0.99, seed: int = 0
    ) -> None:
        if not 0 < discount <= 1:
            raise InvalidInputError(f"a discount must be in (0, 1], got {discount}")
        self._rates = {arm: MeasuredRate() for arm in check_arms(arms)}
        self._discount = discount
        self._random = random.Random(seed)

    def choose(self, context_length: int) -> Shape:
        """Returns the arm with the highest draw, or one that was never tried."""
        for arm, rate in self._rates.items():
            if rate.num == 0:
                return arm
        gauss = self._random.gauss
        return max(
            self._rates,
            key=lambda arm: gauss(self._rates[arm].mean, self._rates[arm].standard_error),
        )

    def observe(self, step: Step) -> None:
        """Takes the step's tokens and seconds into the rate of its arm."""
        rate = self._rates.get(step.shape)
        if rate is not None:
            for each in self._rates.values():
                each.decay(self._discount)
            rate.add(len(step.emitted), step.seconds.total_s)
