"""The search that tunes itself: no constant to set, no list of shapes, off where drafting loses.

It keeps what every step tells whatever its shape: how often the drafter's guesses are accepted, by
rank and depth and by the drafter's own confidence, and what drafting and scoring take. From these
it makes its shapes. Three modes compete on measured tokens per second: off, a tree fixed
beforehand, and a tree that follows the drafter's confidence. Off is plain decoding, and with a
drafter that has guesses for which nothing need be run, such as prompt lookup beside a model, those
that are worth their node.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from treesnake.outcome import Step
from treesnake.search.arms import MeasuredRate
from treesnake.search.belief import ConfidenceBelief, RankBelief
from treesnake.search.costs import CostTable, LearnedCosts
from treesnake.search.planning import plan_prices, plan_tree
from treesnake.shape import OFF, Priced, Shape

MAX_NODES = 64
MAX_WIDTH = 16

PRICED_WIDTH = 8
"""Nodes of a level that a priced tree may expand; its prices keep it narrower where that pays."""

STEPS_PER_PLAN = 32
"""Shapes are made anew after so many steps, in the beginning after a fourth of those so far."""

STEPS_PER_COST = 4
"""Of so many steps one tells what drafting and scoring take, after the first `STEPS_PER_PLAN`."""

ALLOWANCE = 0.015
"""The share of the time that may be lost on trying modes that are believed to be slower."""

CREDIT_STEPS = 10.0
"""Plain steps whose time may be lost in the beginning, and be saved up later."""

TRIAL_STEPS = 4
"""Steps of a mode that is tried."""

DISCOUNT = 0.99
"""What a step counts for the rate of its mode after each later one, so that doubt comes back."""

DOUBT = 2.0
"""The standard errors by which a mode must be slower than the best one for not being tried."""


REST = 8
"""After so many plain steps in a row they are learned from in groups of as many: learning takes a
hundredth of a small model's step."""

TOO_DEAR = 2.0
"""A price that no level is worth: probabilities end at 1."""


class Mode(StrEnum):
    """What kind of shape is drafted."""

    OFF = "off"
    FIXED = "fixed"
    PRICED = "priced"


@dataclass(eq=False)
class SelfTuningSearch:
    """Finds the fastest shape for the pair, the machine and the text, and follows all three.

    One search may serve several sessions at once: what it learns is about the pair.

    Args:
        costs: what drafting and scoring take, if that was measured. Without it, or if it is wrong,
            the first steps tell.
    """

    costs: CostTable | None = None

    def __post_init__(self) -> None:
        self._learned = LearnedCosts(self.costs)
        self._fixed_ranks, self._priced_ranks = RankBelief(), RankBelief()
        self._confidence = ConfidenceBelief()
        self._rates = {mode: MeasuredRate() for mode in Mode}
        self._has_free_guesses = False
        self._modes: tuple[Mode, ...] = (Mode.FIXED, Mode.PRICED)
        self._shapes: dict[Mode, Shape] = {Mode.OFF: OFF}
        self._trials = _Trials()
        self._mode = Mode.OFF
        self._num_steps = 0
        self._next_plan = 1
        self._next_cost = 0
        self._num_unlearned, self._unlearned_s = 0, 0.0
        self._num_missed, self._was_off = 0, False
        self._catch_up_s = 0.0
        self._off_rate = 0.0
        self._context_length = 0
        self._expected_length = 0

    def choose(self, context_length: int) -> Shape:
        """Returns the shape of the mode that is on."""
        if context_length != self._expected_length:
            self._num_missed = 0  # another text, which the drafter was given as a prompt
        self._context_length = context_length
        return self._shapes[self._mode]

    def observe(self, step: Step) -> None:
        """Learns from the step, and decides what comes next."""
        mode = _mode_of(step.shape)
        num_emitted = len(step.emitted)
        is_run = mode is not Mode.OFF and step.num_expanded != ()
        has_debt = self._num_missed > 0 and is_run
        self._expected_length = self._context_length + num_emitted
        is_plain = mode is Mode.OFF and len(step.tree) == 1
        if is_plain and self._num_missed >= REST and self._num_unlearned < REST - 1:
            self._num_missed += num_emitted
            self._num_unlearned += 1
            self._unlearned_s += step.seconds.total_s
            return
        if has_debt or self._num_steps >= self._next_cost:
            self._learn_costs(step, has_debt=has_debt)
        self._learn_acceptance(mode, step)
        # What a mode left to be caught up is its own expense, what was left while off is not.
        self._learn_rate(mode, step, is_counted=not (has_debt and self._was_off))
        self._num_missed = 0 if is_run else self._num_missed + num_emitted
        self._was_off = not is_run and (self._was_off or mode is Mode.OFF)
        self._num_steps += 1 + self._num_unlearned
        self._num_unlearned, self._unlearned_s = 0, 0.0
        self._mode = self._next_mode()
        is_idle = self._mode is Mode.OFF and not self._has_free_guesses
        if not is_idle and self._num_steps >= self._next_plan:
            self._plan()
            self._next_plan = self._num_steps + min(1 + self._num_steps // 4, STEPS_PER_PLAN)

    def _learn_costs(self, step: Step, *, has_debt: bool) -> None:
        extra_s = self._learned.observe(step, self._context_length, has_debt=has_debt)
        if has_debt:
            # Reading many tokens at once takes no longer than one after the other.
            one_s = self._learned.draft_s(1, self._context_length)
            self._catch_up_s = min(extra_s / self._num_missed, one_s)
        self._off_rate = 1 / self._learned.score_s(1, self._context_length)
        self._next_cost = self._num_steps
        self._next_cost += STEPS_PER_COST if self._num_steps >= STEPS_PER_PLAN else 1

    def _learn_acceptance(self, mode: Mode, step: Step) -> None:
        if len(step.tree) == 1:
            return
        if step.num_expanded == ():
            self._has_free_guesses = True
        elif mode is Mode.FIXED:
            self._fixed_ranks.observe(step.tree, step.acceptance.path)
        else:  # has children where the drafter is sure, so they say nothing of fixed ones
            self._priced_ranks.observe(step.tree, step.acceptance.path)
        if step.node_probs is not None:
            self._confidence.observe(step.node_probs, step.acceptance.path)
        elif mode is Mode.PRICED:
            self._modes = (Mode.FIXED,)  # the drafter has no confidence to go by

    def _learn_rate(self, mode: Mode, step: Step, *, is_counted: bool) -> None:
        num_tokens, seconds = len(step.emitted), step.seconds.total_s
        most_s = CREDIT_STEPS / self._off_rate
        if self._num_steps == 0:
            self._trials.allowed_s = most_s
        best = max(self._rates_by_mode().values())
        since_s = min(self._unlearned_s + seconds, most_s)
        since_tokens = self._num_unlearned + num_tokens
        self._trials.account(since_tokens, since_s, best, most_s)
        for rate in self._rates.values():
            rate.decay(DISCOUNT ** (self._num_unlearned + 1))
        if mode is Mode.OFF:
            self._rates[mode].add(since_tokens, self._unlearned_s + seconds)
        elif is_counted:
            self._rates[mode].add(num_tokens, seconds)

    def _plan(self) -> None:
        """Makes the shapes of the modes from what is believed by now."""

        def score_s(num_nodes: int) -> float:
            return self._learned.score_s(num_nodes, length)

        def draft_s(num_expanded: int) -> float:
            return self._learned.draft_s(num_expanded, length)

        length = self._context_length
        max_nodes = min(MAX_NODES, self._learned.most_nodes)
        max_width = min(MAX_WIDTH, self._learned.most_width)
        plan = plan_tree(
            self._fixed_ranks.table(), score_s, draft_s, max_nodes=max_nodes, max_width=max_width
        )
        self._shapes[Mode.FIXED] = plan.shape
        rates = self._rates_by_mode()
        priced = plan_prices(
            [row[0] for row in self._priced_ranks.table()],
            self._confidence.curve().confidence_for,
            score_s,
            draft_s(1),
            max(rates.values()),
            max_nodes=max_nodes,
            width=min(PRICED_WIDTH, max_width),
        )
        self._shapes[Mode.PRICED] = priced
        if self._has_free_guesses:
            prices = (TOO_DEAR,) * priced.depth
            self._shapes[Mode.OFF] = replace(priced, level_prices=prices)

    def _rates_by_mode(self) -> dict[Mode, float]:
        """Returns what each mode is believed to emit per second; one without a step is left out."""
        rates = {Mode.OFF: self._off_rate}
        if self._has_free_guesses:
            rates[Mode.OFF] = max(self._off_rate, self._rates[Mode.OFF].mean)
        rates |= {mode: self._rates[mode].mean for mode in self._modes if self._rates[mode].num}
        return rates

    def _next_mode(self) -> Mode:
        """Returns the mode of a trial if there is one, or else the best."""
        if self._trials.mode in self._modes:
            return self._trials.mode
        rates = self._rates_by_mode()
        leader = max(rates, key=rates.__getitem__)
        for mode in sorted(self._modes, key=lambda mode: self._rates[mode].num):
            if mode is leader or not self._may_be_best(mode, rates[leader]):
                continue
            if self._trials.allowed_s >= self._trial_s(mode, leader, rates[leader]):
                self._trials.mode, self._trials.num_left = mode, TRIAL_STEPS
                return mode
        return leader

    def _may_be_best(self, mode: Mode, best: float) -> bool:
        rate = self._rates[mode]
        return rate.num == 0 or rate.mean + DOUBT * rate.standard_error > best

    def _trial_s(self, mode: Mode, leader: Mode, best: float) -> float:
        """Returns the seconds that a trial is expected to lose."""
        rate = self._rates[mode]
        catching_up_s = self._num_missed * self._catch_up_s if leader is Mode.OFF else 0.0
        if rate.num == 0:
            return 1 / self._off_rate + catching_up_s
        slower = max(1 - rate.mean / best, 0.0)
        return TRIAL_STEPS * slower * rate.seconds_per_step + catching_up_s


@dataclass(eq=False)
class _Trials:
    """Keeps account of the time that is lost on trials (Wu et al. 2016, conservative bandits).

    Attributes:
        allowed_s: the seconds that may be lost from now on.
        mode: what is tried, or None.
        num_left: how many steps of it.
    """

    allowed_s: float = 0.0
    mode: Mode | None = None
    num_left: int = 0

    def account(self, tokens: int, seconds: float, best_rate: float, most_s: float) -> None:
        """Books a step: what a trial lost against the best rate, and the share that may be."""
        self.allowed_s += ALLOWANCE * seconds
        if self.mode is not None:
            self.allowed_s -= seconds - tokens / best_rate
            self.num_left -= 1
            if self.num_left <= 0:
                self.mode = None
        self.allowed_s = min(self.allowed_s, most_s)


def _mode_of(shape: Shape) -> Mode:
    if shape.depth == 0:
        return Mode.OFF
    if isinstance(shape, Priced):
        return Mode.OFF if shape.level_prices[0] >= TOO_DEAR else Mode.PRICED
    return Mode.FIXED
