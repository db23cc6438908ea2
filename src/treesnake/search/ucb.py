"""Upper confidence bounds over a list of shapes: as in Mamba Drafters, and on measured rates."""

from collections.abc import Sequence
from math import log, sqrt

from treesnake.errors import InvalidInputError
from treesnake.outcome import Step
from treesnake.search.arms import ARMS, PAPER_ARMS, ArmSearch, DiscountedRates, check_arms
from treesnake.shape import Shape


class UcbSearch(ArmSearch):
    """UCB1 with the shapes as arms and a modelled reward (Choi et al. 2025; Auer et al. 2002).

    The reward of a step is emitted / (1 + lambda_gamma * depth): tokens per time, where a time of 1
    is a pass of the target and drafting a level takes `lambda_gamma` of it. Arms are tried once
    each, in their order; from then on the one with the largest mean + lambda_ucb * sqrt(ln t / n)
    is taken. The paper does not print its reward; see docs/papers.

    Args:
        arms: the shapes.
        lambda_ucb: the weight of exploration, in units of the reward.
        lambda_gamma: what drafting a level costs, in passes of the target.
    """

    def __init__(
        self,
        arms: Sequence[Shape] = PAPER_ARMS,
        *,
        lambda_ucb: float = 0.5,
        lambda_gamma: float = 0.1,
    ) -> None:
        if lambda_ucb < 0 or lambda_gamma < 0:
            raise InvalidInputError(
                f"both lambdas must be at least 0, got {lambda_ucb} and {lambda_gamma}"
            )
        super().__init__()
        self._arms = check_arms(arms)
        self._lambda_ucb = lambda_ucb
        self._lambda_gamma = lambda_gamma
        self._arm_of = {arm: index for index, arm in enumerate(self._arms)}
        self._counts = [0] * len(self._arms)
        self._rewards = [0.0] * len(self._arms)

    def _pick(self) -> Shape:
        """Returns the arm with the highest bound."""
        if 0 in self._counts:
            return self._arms[self._counts.index(0)]
        log_total = log(sum(self._counts))
        bounds = [
            reward / count + self._lambda_ucb * sqrt(log_total / count)
            for reward, count in zip(self._rewards, self._counts, strict=True)
        ]
        return self._arms[bounds.index(max(bounds))]

    def _learn(self, step: Step) -> None:
        """Gives the arm its reward; a shape that was clipped to something else gets none."""
        arm = self._arm_of.get(step.shape)
        if arm is not None:
            self._counts[arm] += 1
            self._rewards[arm] += len(step.emitted) / (1 + self._lambda_gamma * step.shape.depth)


class DiscountedUcbSearch(ArmSearch):
    """Discounted UCB on emitted tokens per measured second (Garivier and Moulines 2011).

    What was seen long ago counts less, so that the search follows a text that changes. The bound is
    the rate and `sqrt(ln t)` of its own standard errors; no scale of rewards has to be known.

    Args:
        arms: the shapes.
        discount: what a step counts after each later one.
    """

    def __init__(self, arms: Sequence[Shape] = ARMS, *, discount: float = 0.99) -> None:
        super().__init__()
        self._rates = DiscountedRates(arms, discount)

    def _pick(self) -> Shape:
        """Returns the arm with the highest bound, or one that was never tried."""
        if untried := self._rates.untried:
            return untried
        rates = self._rates.by_arm
        num_errors = sqrt(log(1 + sum(rate.num for rate in rates.values())))
        return max(rates, key=lambda arm: rates[arm].mean + num_errors * rates[arm].standard_error)

    def _learn(self, step: Step) -> None:
        """Takes the step's tokens and seconds into the rate of its arm."""
        self._rates.observe(step)
