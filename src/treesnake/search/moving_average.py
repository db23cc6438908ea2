"""The shape with the best moving average."""

from collections.abc import Sequence

from treesnake.errors import InvalidInputError
from treesnake.outcome import Step
from treesnake.search.arms import ARMS, ArmSearch, MeasuredRate, check_arms
from treesnake.shape import Shape


class MovingAverageSearch(ArmSearch):
    """Keeps an exponential moving average of each shape's tokens per second, and takes the best.

    An average moves only with steps of its shape. So every `explore_every`-th step goes to the
    shape that was not tried for longest.

    Args:
        arms: the shapes.
        weight: of a step in its average, in (0, 1].
        explore_every: how often another shape is tried.
    """

    def __init__(
        self, arms: Sequence[Shape] = ARMS, *, weight: float = 0.05, explore_every: int = 20
    ) -> None:
        if not 0 < weight <= 1 or explore_every < 2:
            raise InvalidInputError(
                "a moving average needs a weight in (0, 1] and at least every second step to go "
                f"to the best shape, got {weight} and {explore_every}"
            )
        super().__init__()
        self._rates = {arm: MeasuredRate() for arm in check_arms(arms)}
        self._weight = weight
        self._explore_every = explore_every
        self._num_steps = 0
        self._tried_at = dict.fromkeys(self._rates, -1)

    def _pick(self) -> Shape:
        """Returns the best arm, or now and then the one that waited for longest."""
        waiting = min(self._tried_at, key=self._tried_at.__getitem__)
        if self._tried_at[waiting] < 0 or (self._num_steps + 1) % self._explore_every == 0:
            return waiting
        return max(self._rates, key=lambda arm: self._rates[arm].mean)

    def _learn(self, step: Step) -> None:
        """Moves the average of the step's arm."""
        self._num_steps += 1
        rate = self._rates.get(step.shape)
        if rate is not None:
            rate.decay(1 - self._weight)
            rate.add(len(step.emitted), step.seconds.work_s)
            self._tried_at[step.shape] = self._num_steps
