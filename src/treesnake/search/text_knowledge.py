"""What one text teaches of itself: how fast its modes are, which one leads, which to try."""

from copy import copy

from treesnake.search.answer_lengths import AnswerLength
from treesnake.search.arms import MeasuredRate
from treesnake.search.knowledge import (
    DISCOUNT,
    LoadKnowledge,
    Mode,
    ObservedStep,
    PairKnowledge,
    learn_rates,
)

TRIAL_STEPS = 4
"""Steps of a trial."""

TRIAL_ERROR_MARGIN = 2.0
"""A mode is not tried if it is slower than the best by more than this many standard errors."""

RECENT_DISCOUNT = 0.9
"""As `DISCOUNT`, for the rate of a mode's last steps, by which a text that changes is noticed."""

CHANGE_ERROR_MARGIN = 3.0
"""A mode has become slower if its last steps were, by more than this many standard errors."""

LEAST_RECENT_STEPS = 5.0
"""So many of a mode's last steps are needed for that, counted as `RECENT_DISCOUNT` says."""


class TextKnowledge:
    """What is known of one text under one load.

    It begins with what modes usually earn. Whoever calls a method must hold the lock of the pair.

    Args:
        pair: what all texts teach.
        load: the same, under the load of now.
        answer: how long the text's answer has become.

    Attributes:
        load: the same.
        answer: the same; another one where the text goes on with a next answer.
    """

    def __init__(self, pair: PairKnowledge, load: LoadKnowledge, answer: AnswerLength) -> None:
        self.load = load
        self.answer = answer
        self._pair = pair
        self._rates = load.first_rates()
        self._recent_rates = {mode: MeasuredRate() for mode in Mode}

    @property
    def best_rate(self) -> float:
        """The tokens per second of the fastest mode, once a step was plain."""
        return max(self._rates_by_mode().values())

    def learn(self, observed: ObservedStep) -> None:
        """Learns from a step and the plain steps before it, from which `load` has learned."""
        lost_s = 0.0
        if observed.is_trial:
            lost_s = observed.since_s - observed.since_tokens / self.best_rate
        self._pair.trials.book(observed.since_s, lost_s, 1 / self.load.off_rate)
        learn_rates(self._rates, observed, DISCOUNT)
        if observed.mode is not Mode.OFF and observed.earned is not None:
            self._notice_change(observed.mode, *observed.earned)

    def leader(self, num_unread: int) -> Mode:
        """Returns the mode that is believed to be the fastest; off, until that was measured.

        Args:
            num_unread: the tokens of the prompt that the drafter would have to read first. It reads
                them if what it gains in the rest of the answer makes up for that.
        """
        if not self.load.has_been_off:
            return Mode.OFF
        rates = self._rates_by_mode()
        best = max(rates, key=rates.__getitem__)
        return best if self._repays(rates[best], num_unread) else Mode.OFF

    def mode_to_try(self, num_behind: int, num_unread: int) -> Mode | None:
        """Returns a mode that may be faster than the leader, if the budget has room for a trial.

        What the drafter is expected to read first is taken out of the budget.

        Args:
            num_behind: the tokens of the answer that the drafter would have to read first.
            num_unread: the same, of the prompt.
        """
        load, best = self.load, self.best_rate
        if not load.has_been_off:
            return None
        leader = self.leader(num_unread)
        for mode in sorted(load.modes, key=lambda mode: self._rates[mode].num):
            if mode is leader or not self._may_be_best(mode, best, num_unread):
                continue
            if self._pair.trials.left_s >= self._trial_s(mode, leader, num_behind, num_unread):
                self._pair.trials.left_s -= self._pair.reading.seconds(num_unread)
                return mode
        return None

    def _rates_by_mode(self) -> dict[Mode, float]:
        """Returns the tokens per second of off and of the modes that had a step."""
        off_rate = self.load.off_rate
        if self.load.has_free_guesses:
            off_rate = max(off_rate, self._rates[Mode.OFF].mean)
        return {Mode.OFF: off_rate} | {
            mode: self._rates[mode].mean for mode in self.load.modes if self._rates[mode].num
        }

    def _notice_change(self, mode: Mode, num_tokens: int, seconds: float) -> None:
        """Lets the rate of a mode begin anew where its last steps show that it became slower."""
        rate, recent = self._rates[mode], self._recent_rates[mode]
        recent.decay(RECENT_DISCOUNT)
        recent.add(num_tokens, seconds)
        at_best = recent.mean + CHANGE_ERROR_MARGIN * recent.standard_error
        if recent.num >= LEAST_RECENT_STEPS and at_best < rate.mean:
            self._rates[mode] = copy(recent)

    def _may_be_best(self, mode: Mode, best: float, num_unread: int) -> bool:
        rate = self._rates[mode]
        at_best = rate.mean + TRIAL_ERROR_MARGIN * rate.standard_error
        return rate.num == 0 or (at_best > best and self._repays(at_best, num_unread))

    def _repays(self, rate: float, num_unread: int) -> bool:
        """Tells whether the rest of the answer at a rate makes up for reading the prompt first."""
        if not num_unread:
            return True
        saved_s = 1 / self._rates_by_mode()[Mode.OFF] - 1 / rate
        rest = self._pair.answers.expected_rest(self.answer)
        return saved_s * rest >= self._pair.reading.seconds(num_unread)

    def _trial_s(self, mode: Mode, leader: Mode, num_behind: int, num_unread: int) -> float:
        """Returns the seconds that a trial is expected to lose."""
        rate = self._rates[mode]
        first_s = num_behind * self.load.catch_up_s if leader is Mode.OFF else 0.0
        first_s += self._pair.reading.seconds(num_unread)
        if rate.num == 0:
            return 1 / self.load.off_rate + first_s
        slower = max(1 - rate.mean / self.best_rate, 0.0)
        return TRIAL_STEPS * slower * rate.seconds_per_step + first_s
