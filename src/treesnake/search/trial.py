"""The shape that was best in a short trial."""

from collections.abc import Sequence

from treesnake.errors import InvalidInputError
from treesnake.outcome import Step
from treesnake.search.arms import ARMS, ArmSearch, MeasuredRate, check_arms
from treesnake.shape import Shape


class TrialSearch(ArmSearch):
    """Tries each shape for some steps, then keeps the best: what careful people do by hand.

    Args:
        arms: the shapes. They take turns, so that none gets an easier part of the text.
        num_trials: steps for each.
    """

    def __init__(self, arms: Sequence[Shape] = ARMS, *, num_trials: int = 16) -> None:
        if num_trials < 1:
            raise InvalidInputError(f"each shape must be tried at least once, got {num_trials}")
        super().__init__()
        self._rates = {arm: MeasuredRate() for arm in check_arms(arms)}
        self._num_trials = num_trials

    def _pick(self) -> Shape:
        """Returns the arm that was tried least, or once all were tried, the best."""
        least = min(self._rates, key=lambda arm: self._rates[arm].num)
        if self._rates[least].num < self._num_trials:
            return least
        return max(self._rates, key=lambda arm: self._rates[arm].mean)

    def _learn(self, step: Step) -> None:
        """Takes the step into account while its arm is on trial."""
        rate = self._rates.get(step.shape)
        if rate is not None and rate.num < self._num_trials:
            rate.add(len(step.emitted), step.seconds.work_s)
