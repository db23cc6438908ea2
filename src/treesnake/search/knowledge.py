"""What all texts of a pair teach together: acceptance, costs, rates, and the shapes that follow.

None of this depends on which text it came from, so the sessions of a search share it. What a step
takes depends on how many texts share its pass, which is the load: costs, rates and shapes are those
of one load. How often drafts are accepted is the same under any load.
"""

from copy import copy
from dataclasses import dataclass, field
from enum import StrEnum
from math import log2

from treesnake.outcome import Step
from treesnake.search.arms import MeasuredRate
from treesnake.search.belief import ConfidenceBelief, RankBelief
from treesnake.search.costs import CostTable, LearnedCosts
from treesnake.search.planning import plan_prices, plan_tree
from treesnake.shape import OFF, Shape, is_off
from treesnake.threads import new_lock

MAX_NODES = 64
MAX_WIDTH = 16

PRICED_WIDTH = 8
"""Nodes of a level that a priced tree may expand; its prices keep it narrower where that pays."""

STEPS_PER_PLAN = 32
"""Shapes are planned anew after this many steps; at first, after a quarter of the steps so far."""

STEPS_PER_COST = 4
"""After the first `STEPS_PER_PLAN` steps, costs are learned from one step in this many."""

TRIAL_TIME_SHARE = 0.015
"""The share of all time that trials may lose."""

CREDIT_STEPS = 10.0
"""The trial budget, in plain steps: what it holds at first and at most."""

TRIAL_STEPS = 4
"""Steps of a trial."""

TRIAL_ERROR_MARGIN = 2.0
"""A mode is not tried if it is slower than the best by more than this many standard errors."""

STEPS_FROM_EARLIER_TEXTS = 16.0
"""What earlier texts teach of a mode's rate counts for at most so many steps of a new one."""

USUAL_DISCOUNT = 0.999
"""As `DISCOUNT`, for the rates that a new text begins with: of many texts, not of the last."""

RECENT_DISCOUNT = 0.9
"""As `DISCOUNT`, for the rate of a mode's last steps, by which a text that changes is noticed."""

CHANGE_ERROR_MARGIN = 3.0
"""A mode has become slower if its last steps were, by more than this many standard errors."""

LEAST_RECENT_STEPS = 5.0
"""Of a text, so many of its last steps are needed for that, counted as `RECENT_DISCOUNT` says."""

DISCOUNT = 0.99
"""What a step counts for the rate of its mode after each later one, so that doubt comes back."""


class Mode(StrEnum):
    """What kind of shape is drafted."""

    OFF = "off"
    FIXED = "fixed"
    PRICED = "priced"

    @classmethod
    def of(cls, shape: Shape) -> "Mode":
        """Returns the mode that a shape belongs to."""
        if is_off(shape):
            return cls.OFF
        return cls.PRICED if shape.as_tree() is None else cls.FIXED


@dataclass(frozen=True, eq=False)
class ObservedStep:
    """A step, and where its text stood.

    Attributes:
        step: the step.
        mode: that of its shape.
        context_length: the tokens of the text before the step.
        num_behind: the tokens that the drafter had to read first, because it was not run while they
            were emitted.
        was_off: whether drafting was off while the drafter fell behind.
        num_plain: the plain steps of the text just before, from which nothing was learned yet; each
            emitted one token.
        plain_s: the seconds of work in those.
        is_trial: whether the mode was on trial.
    """

    step: Step
    mode: Mode
    context_length: int
    num_behind: int
    was_off: bool
    num_plain: int
    plain_s: float
    is_trial: bool


class AcceptanceKnowledge:
    """How often drafts are accepted, whatever they cost.

    Attributes:
        fixed_ranks: by rank and depth, in trees that are fixed beforehand.
        priced_ranks: the same, in trees that follow the drafter's confidence. They have children
            where the drafter is sure, so they say nothing of fixed ones.
        confidence: by the drafter's confidence.
        modes: what can be chosen besides plain decoding.
        has_free_guesses: whether some drafts came without running a model.
    """

    def __init__(self) -> None:
        self.fixed_ranks, self.priced_ranks = RankBelief(), RankBelief()
        self.confidence = ConfidenceBelief()
        self.modes: tuple[Mode, ...] = (Mode.FIXED, Mode.PRICED)
        self.has_free_guesses = False

    def learn(self, step: Step, mode: Mode) -> None:
        """Learns from a step, by the mode of its shape."""
        path = step.acceptance.path
        if len(step.tree) == 1:
            return
        if step.num_expanded == ():
            self.has_free_guesses = True
        elif mode is Mode.FIXED:
            self.fixed_ranks.observe(step.tree, path)
        else:
            self.priced_ranks.observe(step.tree, path)
        if step.node_probs is not None:
            self.confidence.observe(step.node_probs, path)
        elif mode is Mode.PRICED:
            self.modes = (Mode.FIXED,)  # the drafter has no confidence to go by


class PairKnowledge:
    """What is known of a pair and a machine. Whoever calls a method must hold `lock`.

    Args:
        costs: what drafting and scoring take for a text alone, if that was measured.

    Attributes:
        lock: guards everything here; it is never held while a model runs.
    """

    def __init__(self, costs: CostTable | None = None) -> None:
        self.lock = new_lock()
        self._accepted = AcceptanceKnowledge()
        self._trial_budget = TrialBudget()
        self._latest = LoadKnowledge(LearnedCosts(costs), self._accepted, self._trial_budget)
        self._by_load = {1: self._latest}

    def begin_text(self) -> "LoadKnowledge":
        """Returns what is known under the load of the latest step, for a new text."""
        self._latest.begin_text()
        return self._latest

    def learn(self, observed: ObservedStep) -> "LoadKnowledge":
        """Learns from a step and the plain steps before it; returns what is known under its load.

        Loads that are alike count as one: 3 to 5 texts as 4, 6 to 11 as 8.
        """
        load = 1 << round(log2(observed.step.num_texts))
        if load not in self._by_load:
            costs = self._by_load[1].costs.shared_by(load)
            self._by_load[load] = LoadKnowledge(costs, self._accepted, self._trial_budget)
        self._accepted.learn(observed.step, observed.mode)
        self._latest = self._by_load[load]
        self._latest.learn(observed)
        return self._latest


class LoadKnowledge:
    """What is known of steps under one load: what they take and earn, and which shapes pay.

    Args:
        costs: what drafting and scoring are believed to take.
        accepted: how often drafts are accepted, which others learn.
        trial_budget: of all loads together.

    Attributes:
        costs: the same, corrected by every step.
        shapes: that of each mode, all planned with the first step. Reading one needs no lock.
    """

    def __init__(
        self, costs: LearnedCosts, accepted: AcceptanceKnowledge, trial_budget: "TrialBudget"
    ) -> None:
        self.costs = costs
        self.shapes: dict[Mode, Shape] = {Mode.OFF: OFF}
        self._accepted = accepted
        self._rates = {mode: MeasuredRate() for mode in Mode}
        self._recent_rates = {mode: MeasuredRate() for mode in Mode}
        self._usual_rates = {mode: MeasuredRate() for mode in Mode}
        self._trial_budget = trial_budget
        self._off_rate = 0.0
        self._catch_up_s = 0.0
        self._has_been_off = False
        self._num_steps = 0
        self._next_plan = 1
        self._next_cost = 0

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What can be chosen besides plain decoding."""
        return self._accepted.modes

    def begin_text(self) -> None:
        """Lets rates be what they usually are, and count little: a new text may be another."""
        for mode, usual in self._usual_rates.items():
            counted = min(self._rates[mode].num, STEPS_FROM_EARLIER_TEXTS)
            self._rates[mode] = copy(usual)
            if counted < usual.num:
                self._rates[mode].decay(counted / usual.num)
        self._recent_rates = {mode: MeasuredRate() for mode in Mode}

    def learn(self, observed: ObservedStep) -> None:
        """Learns from a step, and from the plain steps before it."""
        if observed.num_behind or self._num_steps >= self._next_cost:
            self._learn_costs(observed)
        self._learn_rates(observed)
        self._num_steps += 1 + observed.num_plain

    def leader(self) -> Mode:
        """Returns the mode that is believed to be the fastest; off, until that was measured."""
        if not self._has_been_off:
            return Mode.OFF
        rates = self._rates_by_mode()
        return max(rates, key=rates.__getitem__)

    def mode_to_try(self, num_behind: int) -> Mode | None:
        """Returns a mode that may be faster than the leader, if the budget has room for a trial.

        Args:
            num_behind: the tokens that the drafter would have to read first.
        """
        if not self._has_been_off:
            return None
        leader, best = self.leader(), max(self._rates_by_mode().values())
        for mode in sorted(self.modes, key=lambda mode: self._rates[mode].num):
            if mode is leader or not self._may_be_best(mode, best):
                continue
            if self._trial_budget.left_s >= self._trial_s(mode, leader, best, num_behind):
                return mode
        return None

    def plan_if_due(self, mode: Mode, context_length: int) -> None:
        """Plans the shapes of all modes anew, if it is time and the mode that is on has one."""
        is_planned = len(self.shapes) > 1
        is_idle = mode is Mode.OFF and is_planned and not self._accepted.has_free_guesses
        if not is_idle and self._num_steps >= self._next_plan:
            self._plan(context_length)
            self._next_plan = self._num_steps + min(1 + self._num_steps // 4, STEPS_PER_PLAN)

    def _learn_costs(self, observed: ObservedStep) -> None:
        length, num_behind = observed.context_length, observed.num_behind
        extra_s = self.costs.observe(observed.step, length, num_behind=num_behind)
        if num_behind:
            # Reading many tokens at once takes no longer than one after the other.
            self._catch_up_s = min(extra_s / num_behind, self.costs.draft_s(1, length))
        self._off_rate = 1 / self.costs.score_s(1, length)
        self._next_cost = self._num_steps
        self._next_cost += STEPS_PER_COST if self._num_steps >= STEPS_PER_PLAN else 1

    def _learn_rates(self, observed: ObservedStep) -> None:
        num_tokens, seconds = len(observed.step.emitted), observed.step.seconds.work_s
        most_s = CREDIT_STEPS / self._off_rate
        self._trial_budget.open(most_s)
        best = max(self._rates_by_mode().values())
        since_tokens = observed.num_plain + num_tokens
        since_s = min(observed.plain_s + seconds, most_s)
        lost_s = since_s - since_tokens / best if observed.is_trial else 0.0
        self._trial_budget.book(since_s, lost_s, most_s)
        for rates, discount in ((self._rates, DISCOUNT), (self._usual_rates, USUAL_DISCOUNT)):
            for rate in rates.values():
                rate.decay(discount ** (observed.num_plain + 1))
        if observed.mode is Mode.OFF:
            self._has_been_off = True
            self._rates[Mode.OFF].add(since_tokens, observed.plain_s + seconds)
            self._usual_rates[Mode.OFF].add(since_tokens, observed.plain_s + seconds)
        elif not (observed.num_behind and observed.was_off):
            # A mode pays for reading what it skipped itself, not for what was skipped while off.
            self._add(observed.mode, num_tokens, seconds)

    def _add(self, mode: Mode, num_tokens: int, seconds: float) -> None:
        """Adds a step to the rate of its mode, which begins anew where the mode became slower."""
        rate, recent = self._rates[mode], self._recent_rates[mode]
        recent.decay(RECENT_DISCOUNT)
        for each in (rate, recent, self._usual_rates[mode]):
            each.add(num_tokens, seconds)
        at_best = recent.mean + CHANGE_ERROR_MARGIN * recent.standard_error
        if recent.num >= LEAST_RECENT_STEPS and at_best < rate.mean:
            self._rates[mode] = copy(recent)

    def _plan(self, context_length: int) -> None:
        """Makes the shapes of the modes from what is believed by now."""

        def score_s(num_nodes: int) -> float:
            return self.costs.score_s(num_nodes, context_length)

        def draft_s(num_expanded: int) -> float:
            return self.costs.draft_s(num_expanded, context_length)

        max_nodes = min(MAX_NODES, self.costs.most_nodes)
        max_width = min(MAX_WIDTH, self.costs.most_width)
        accepted = self._accepted
        plan = plan_tree(
            accepted.fixed_ranks.table(), score_s, draft_s, max_nodes=max_nodes, max_width=max_width
        )
        self.shapes[Mode.FIXED] = plan.shape
        priced = plan_prices(
            [row[0] for row in accepted.priced_ranks.table()],
            accepted.confidence.curve().confidence_for,
            score_s,
            draft_s(1),
            max(self._rates_by_mode().values()),
            max_nodes=max_nodes,
            width=min(PRICED_WIDTH, max_width),
        )
        self.shapes[Mode.PRICED] = priced
        # Whether there are free guesses is seen while drafting is off, too: they cost nothing.
        self.shapes[Mode.OFF] = priced.without_levels()

    def _rates_by_mode(self) -> dict[Mode, float]:
        """Returns the tokens per second of off and of the modes that had a step."""
        rates = {Mode.OFF: self._off_rate}
        if self._accepted.has_free_guesses:
            rates[Mode.OFF] = max(self._off_rate, self._rates[Mode.OFF].mean)
        return rates | {
            mode: self._rates[mode].mean for mode in self.modes if self._rates[mode].num
        }

    def _may_be_best(self, mode: Mode, best: float) -> bool:
        rate = self._rates[mode]
        return rate.num == 0 or rate.mean + TRIAL_ERROR_MARGIN * rate.standard_error > best

    def _trial_s(self, mode: Mode, leader: Mode, best: float, num_behind: int) -> float:
        """Returns the seconds that a trial is expected to lose."""
        rate = self._rates[mode]
        catch_up_s = num_behind * self._catch_up_s if leader is Mode.OFF else 0.0
        if rate.num == 0:
            return 1 / self._off_rate + catch_up_s
        slower = max(1 - rate.mean / best, 0.0)
        return TRIAL_STEPS * slower * rate.seconds_per_step + catch_up_s


@dataclass(eq=False)
class TrialBudget:
    """Budgets the time spent on trials (Wu et al. 2016, conservative bandits).

    Attributes:
        left_s: the seconds that trials may lose from now on.
    """

    left_s: float = 0.0
    _is_open: bool = field(default=False, init=False)

    def open(self, first_s: float) -> None:
        """Sets what it holds at first; later calls do nothing."""
        if not self._is_open:
            self.left_s, self._is_open = first_s, True

    def book(self, seconds: float, lost_s: float, most_s: float) -> None:
        """Books a step: adds a share of its seconds, takes away what a trial lost in it."""
        self.left_s = min(self.left_s + TRIAL_TIME_SHARE * seconds - lost_s, most_s)
