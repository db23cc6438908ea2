"""What trials of modes may lose (Wu et al. 2016, conservative bandits)."""

from dataclasses import dataclass, field

TRIAL_TIME_SHARE = 0.015
"""The share of all time that trials may lose."""

CREDIT_STEPS = 10.0
"""What the budget holds at first and at most, in plain steps."""


@dataclass(eq=False)
class TrialBudget:
    """Budgets the time that trials lose.

    Attributes:
        left_s: the seconds that trials may lose from now on.
    """

    left_s: float = 0.0
    _is_open: bool = field(default=False, init=False)

    def book(self, seconds: float, lost_s: float, plain_step_s: float) -> None:
        """Books a step: adds a share of its seconds, takes away what a trial lost in it.

        Args:
            seconds: that the step took.
            lost_s: of them, those that a trial lost.
            plain_step_s: the seconds of a plain step.
        """
        most_s = CREDIT_STEPS * plain_step_s
        if not self._is_open:
            self.left_s, self._is_open = most_s, True
        self.left_s = min(self.left_s + TRIAL_TIME_SHARE * min(seconds, most_s) - lost_s, most_s)
