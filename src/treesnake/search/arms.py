"""Searches over a list of shapes: what they have in common, and what each shape earned."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import sqrt

from treesnake.errors import InvalidInputError
from treesnake.outcome import Step
from treesnake.shape import OFF, BestFirst, LevelWidths, Shape, chain
from treesnake.threads import new_lock

PAPER_ARMS: tuple[Shape, ...] = (
    chain(5, sampled=False),
    LevelWidths((3, 2, 2, 1, 1), sampled=False),
    LevelWidths((3, 3, 2, 1), sampled=False),
    LevelWidths((2, 2, 2, 1, 1, 1), sampled=False),
)
"""The trees that Mamba Drafters (Choi et al. 2025) names, and a sequence.

Their nodes are chosen and not drawn, so that a seed gives the same text whichever is taken.
"""

ARMS: tuple[Shape, ...] = (
    OFF,
    *(chain(length, sampled=False) for length in (1, 2, 3, 5, 8)),
    LevelWidths((2, 1, 1), sampled=False),
    LevelWidths((3, 2, 2, 1, 1), sampled=False),
    LevelWidths((2, 2, 2, 1, 1, 1), sampled=False),
    BestFirst(2, 4, 6),
    BestFirst(4, 6, 16),
    BestFirst(8, 8, 60),
)
"""From plain decoding to more than sixty nodes: one of them is not far from the best anywhere."""

USUAL_DEVIATION = 0.5
"""Before it is measured: the deviation of a step's tokens per second, relative to their mean."""


def check_arms(arms: Sequence[Shape]) -> tuple[Shape, ...]:
    """Returns the arms as a tuple.

    Raises:
        InvalidInputError: if there is none, or one is there twice.
    """
    if not arms or len(set(arms)) < len(arms):
        raise InvalidInputError(
            f"a search needs at least one shape to choose from, each once, got {list(arms)}"
        )
    return tuple(arms)


class ArmSearch(ABC):
    """Picks one of a list of shapes, by what each earned in all texts.

    Nothing in it belongs to one text, so every session is the search itself.
    """

    def __init__(self) -> None:
        self._lock = new_lock()

    def new_session(self) -> "ArmSearch":
        """Returns itself."""
        return self

    def choose(self, context_length: int) -> Shape:
        """Returns the arm to draft next."""
        with self._lock:
            return self._pick()

    def observe(self, step: Step) -> None:
        """Learns what the arm of the step earned; a shape that is none teaches nothing."""
        with self._lock:
            self._learn(step)

    @abstractmethod
    def _pick(self) -> Shape: ...

    @abstractmethod
    def _learn(self, step: Step) -> None: ...


class MeasuredRate:
    """Emitted tokens per measured second, as a ratio of sums, with its standard error.

    Sums decay: a step that is `1 / (1 - discount)` steps old counts a third.
    """

    __slots__ = ("_seconds", "_squares", "_tokens", "_tokens_seconds", "_tokens_squares", "num")

    def __init__(self) -> None:
        self.num = 0.0
        self._tokens = self._seconds = 0.0
        self._tokens_squares = self._tokens_seconds = self._squares = 0.0

    def decay(self, discount: float) -> None:
        """Makes everything so far count less."""
        self.num *= discount
        self._tokens *= discount
        self._seconds *= discount
        self._tokens_squares *= discount
        self._tokens_seconds *= discount
        self._squares *= discount

    def add(self, tokens: int, seconds: float) -> None:
        """Takes a step into account."""
        self.num += 1
        self._tokens += tokens
        self._seconds += seconds
        self._tokens_squares += tokens * tokens
        self._tokens_seconds += tokens * seconds
        self._squares += seconds * seconds

    @property
    def mean(self) -> float:
        """Tokens per second; 0 before the first step."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def seconds_per_step(self) -> float:
        """The mean seconds of a step; 0 before the first."""
        return self._seconds / self.num if self.num else 0.0

    @property
    def standard_error(self) -> float:
        """That of the mean, by the residuals of the ratio and two steps of usual deviation."""
        if not self._seconds:
            return 0.0
        rate = self.mean
        residuals = self._tokens_squares - 2 * rate * self._tokens_seconds + rate**2 * self._squares
        usual = 2 * (USUAL_DEVIATION * self._tokens / self.num) ** 2
        variance = (max(residuals, 0.0) + usual) / (self.num + 2)
        return sqrt(variance / self.num) * self.num / self._seconds


class DiscountedRates:
    """The measured rate of each arm; with every step, all earlier ones count less.

    Args:
        arms: the shapes.
        discount: what a step counts after each later one, in (0, 1].
    """

    def __init__(self, arms: Sequence[Shape], discount: float) -> None:
        if not 0 < discount <= 1:
            raise InvalidInputError(f"a discount must be in (0, 1], got {discount}")
        self.by_arm = {arm: MeasuredRate() for arm in check_arms(arms)}
        self._discount = discount

    @property
    def untried(self) -> Shape | None:
        """The first arm without a step, or None."""
        return next((arm for arm, rate in self.by_arm.items() if rate.num == 0), None)

    def observe(self, step: Step) -> None:
        """Adds a step's tokens and seconds to the rate of its arm, if its shape is one."""
        rate = self.by_arm.get(step.shape)
        if rate is not None:
            for each in self.by_arm.values():
                each.decay(self._discount)
            rate.add(len(step.emitted), step.seconds.work_s)
