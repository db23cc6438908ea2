"""What all texts of a pair teach together: acceptance, costs, usual rates, and their shapes.

None of this depends on which text it came from, so the sessions of a search share it. What a step
takes depends on how many texts share its pass, which is the load: costs, rates and shapes are those
of one load. How often drafts are accepted, what reading a prompt takes and how long answers become
is the same under any load.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from enum import StrEnum
from math import log2

from treesnake.outcome import Step
from treesnake.search.answer_lengths import AnswerLengths
from treesnake.search.arms import MeasuredRate
from treesnake.search.belief import ConfidenceBelief, RankBelief
from treesnake.search.costs import CostTable, LearnedCosts, ReadingCosts
from treesnake.search.planning import plan_prices, plan_tree
from treesnake.search.trial_budget import TrialBudget
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

DISCOUNT = 0.99
"""What a step counts for the rate of its mode after each later one, so that doubt comes back."""

USUAL_DISCOUNT = 0.999
"""As `DISCOUNT`, for the rates that a new text begins with: of many texts, not of the last."""

STEPS_FROM_EARLIER_TEXTS = 16.0
"""What earlier texts teach of a mode's rate counts for at most so many steps of a new one."""


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
        num_read: the tokens of the prompt that the drafter had to read first, as this text asked it
            for nothing before.
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
    num_read: int
    num_plain: int
    plain_s: float
    is_trial: bool

    @property
    def since_tokens(self) -> int:
        """The tokens that were emitted since the text was learned from."""
        return self.num_plain + len(self.step.emitted)

    @property
    def since_s(self) -> float:
        """The seconds of work since then."""
        return self.plain_s + self.step.seconds.work_s

    @property
    def earned(self) -> tuple[int, float] | None:
        """The tokens and seconds that tell how fast the mode is, if they do.

        A mode pays for reading what it skipped itself, not for what was skipped while off.
        """
        if self.mode is Mode.OFF:
            return self.since_tokens, self.since_s
        if self.num_behind and self.was_off:
            return None
        return len(self.step.emitted), self.step.seconds.work_s


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
        reading: what it takes until the drafter has read a prompt.
        answers: how long answers became.
        trials: what trials may lose, under all loads together.
        latest: what is known under the load of the latest step.
    """

    def __init__(self, costs: CostTable | None = None) -> None:
        self.lock = new_lock()
        self.reading = ReadingCosts()
        self.answers = AnswerLengths()
        self.trials = TrialBudget()
        self._accepted = AcceptanceKnowledge()
        self.latest = LoadKnowledge(LearnedCosts(costs), self._accepted)
        self._by_load = {1: self.latest}

    def learn(self, observed: ObservedStep) -> "LoadKnowledge":
        """Learns from a step and the plain steps before it; returns what is known under its load.

        Loads that are alike count as one: 3 to 5 texts as 4, 6 to 11 as 8.
        """
        load = 1 << round(log2(observed.step.num_texts))
        if load not in self._by_load:
            costs = self._by_load[1].costs.shared_by(load)
            self._by_load[load] = LoadKnowledge(costs, self._accepted)
        self._accepted.learn(observed.step, observed.mode)
        if observed.num_read:
            self.reading.observe(observed.num_read, observed.step.seconds.prefill_s)
        self.latest = self._by_load[load]
        self.latest.learn(observed)
        return self.latest


class LoadKnowledge:
    """What is known of steps under one load: what they take and earn, and which shapes pay.

    Args:
        costs: what drafting and scoring are believed to take.
        accepted: how often drafts are accepted, which others learn.

    Attributes:
        costs: the same, corrected by every step.
        shapes: that of each mode, all planned with the first step. Reading one needs no lock.
        off_rate: the tokens per second of plain steps that score no free guesses, by their costs;
            0 before the first step.
        catch_up_s: the seconds in which the drafter reads a token that was emitted without it.
        has_been_off: whether a step was plain.
    """

    def __init__(self, costs: LearnedCosts, accepted: AcceptanceKnowledge) -> None:
        self.costs = costs
        self.shapes: dict[Mode, Shape] = {Mode.OFF: OFF}
        self.off_rate = 0.0
        self.catch_up_s = 0.0
        self.has_been_off = False
        self._accepted = accepted
        self._usual_rates = {mode: MeasuredRate() for mode in Mode}
        self._late_rates = {mode: MeasuredRate() for mode in Mode}
        self._num_steps = 0
        self._next_plan = 1
        self._next_cost = 0

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What can be chosen besides plain decoding."""
        return self._accepted.modes

    @property
    def has_free_guesses(self) -> bool:
        """Whether some drafts came without running a model."""
        return self._accepted.has_free_guesses

    def learn(self, observed: ObservedStep) -> None:
        """Learns from a step, and from the plain steps before it."""
        if observed.num_behind or self._num_steps >= self._next_cost:
            self._learn_costs(observed)
        self.has_been_off = self.has_been_off or observed.mode is Mode.OFF
        learn_rates(self._usual_rates, observed, USUAL_DISCOUNT)
        learn_rates(self._late_rates, observed, DISCOUNT)
        self._num_steps += 1 + observed.num_plain

    def first_rates(self) -> dict[Mode, MeasuredRate]:
        """Returns the rates that a text begins with: what they usually are.

        They count as many steps as there were lately, but few: the new text may be another.
        """
        rates: dict[Mode, MeasuredRate] = {}
        for mode, usual in self._usual_rates.items():
            rates[mode] = copy(usual)
            counted = min(self._late_rates[mode].num, STEPS_FROM_EARLIER_TEXTS)
            if counted < usual.num:
                rates[mode].decay(counted / usual.num)
        return rates

    def plan_if_due(self, mode: Mode, context_length: int, best_rate: float) -> None:
        """Plans the shapes of all modes anew, if it is time and the mode that is on has one.

        Args:
            mode: the one that is on.
            context_length: of the text that asks.
            best_rate: the tokens per second that it achieves.
        """
        is_planned = len(self.shapes) > 1
        is_idle = mode is Mode.OFF and is_planned and not self.has_free_guesses
        if not is_idle and self._num_steps >= self._next_plan:
            self._plan(context_length, best_rate)
            self._next_plan = self._num_steps + min(1 + self._num_steps // 4, STEPS_PER_PLAN)

    def _learn_costs(self, observed: ObservedStep) -> None:
        length, num_behind = observed.context_length, observed.num_behind
        extra_s = self.costs.observe(observed.step, length, num_behind=num_behind)
        if num_behind:
            # Reading many tokens at once takes no longer than one after the other.
            self.catch_up_s = min(extra_s / num_behind, self.costs.draft_s(1, length))
        self.off_rate = 1 / self.costs.score_s(1, length)
        self._next_cost = self._num_steps
        self._next_cost += STEPS_PER_COST if self._num_steps >= STEPS_PER_PLAN else 1

    def _plan(self, context_length: int, best_rate: float) -> None:
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
            best_rate,
            max_nodes=max_nodes,
            width=min(PRICED_WIDTH, max_width),
        )
        self.shapes[Mode.PRICED] = priced
        # Whether there are free guesses is seen while drafting is off, too: they cost nothing.
        self.shapes[Mode.OFF] = priced.without_levels()


def learn_rates(
    rates: Mapping[Mode, MeasuredRate], observed: ObservedStep, discount: float
) -> None:
    """Adds what a step earned to the rate of its mode; all that was before counts less.

    Args:
        rates: of the modes.
        observed: the step, and the plain steps before it.
        discount: what a step counts after each later one.
    """
    for rate in rates.values():
        rate.decay(discount ** (observed.num_plain + 1))
    if observed.earned is not None:
        rates[observed.mode].add(*observed.earned)
