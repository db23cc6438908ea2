"""The search that tunes itself: no constant to set, no list of shapes, off where drafting loses.

Every step tells how often the drafter's guesses are accepted, by rank and depth and by the
drafter's own confidence, and what drafting and scoring take. From these the search plans its
shapes. Three modes compete on measured tokens per second: off, a tree that is fixed beforehand,
and a tree that follows the drafter's confidence. "Off" runs no drafter model. Free guesses, such as
those of prompt lookup, are still used where they pay for their nodes.

Where texts share passes, reading the weights costs each less, so nodes cost more of what a step
takes and drafting pays less. Steps tell how many texts shared their pass, and the search keeps
costs, rates and plans apart by that.
"""

from dataclasses import dataclass

from treesnake.outcome import Step
from treesnake.search.costs import CostTable
from treesnake.search.knowledge import LoadKnowledge, Mode, ObservedStep, PairKnowledge
from treesnake.search.text_knowledge import TRIAL_STEPS, TextKnowledge
from treesnake.shape import Shape

PLAIN_STEPS_AT_ONCE = 8
"""After this many plain steps in a row, plain steps are learned from in groups of this size:
learning takes a hundredth of a small model's step."""


@dataclass(eq=False)
class SelfTuningSearch:
    """Finds the fastest shape for the pair, the machine and the text, and follows all three.

    Args:
        costs: what drafting and scoring take, if that was measured. Without it, or if it is wrong,
            the first steps tell.
    """

    costs: CostTable | None = None

    def __post_init__(self) -> None:
        self._knowledge = PairKnowledge(self.costs)

    def new_session(self) -> "SelfTuningSession":
        """Returns the search for one text, which learns from all."""
        return SelfTuningSession(self._knowledge)


class SelfTuningSession:
    """The search for one text: how long it is, what the drafter has not read, which mode is on.

    Args:
        knowledge: shared by all texts of the pair.
    """

    def __init__(self, knowledge: PairKnowledge) -> None:
        self._pair = knowledge
        self._context_length = 0
        self._expected_length = 0
        self._num_unread = 0
        self._num_behind, self._was_off = 0, False
        self._num_plain, self._plain_s = 0, 0.0
        self._tried: Mode | None = None
        self._num_trial_steps = 0
        self._mode = Mode.OFF
        with knowledge.lock:
            answer = knowledge.answers.begin()
            self._text = TextKnowledge(knowledge, knowledge.latest, answer)

    def choose(self, context_length: int) -> Shape:
        """Returns the shape of the mode that is on."""
        if context_length != self._expected_length:
            self._begin(context_length)
        self._context_length = context_length
        return self._text.load.shapes[self._mode]

    def observe(self, step: Step) -> None:
        """Learns from the step, and decides what comes next."""
        mode = Mode.of(step.shape)
        num_new = len(step.emitted)
        self._expected_length = self._context_length + num_new
        self._text.answer.num_tokens += num_new
        is_plain = mode is Mode.OFF and len(step.tree) == 1
        is_group_open = self._num_plain < PLAIN_STEPS_AT_ONCE - 1
        if is_plain and self._num_behind >= PLAIN_STEPS_AT_ONCE and is_group_open:
            self._num_behind += num_new
            self._num_plain += 1
            self._plain_s += step.seconds.work_s
            return
        runs_drafter = mode is not Mode.OFF and step.num_expanded != ()
        observed = ObservedStep(
            step,
            mode,
            self._context_length,
            num_behind=self._num_behind if runs_drafter else 0,
            was_off=self._was_off,
            num_read=self._num_unread if runs_drafter else 0,
            num_plain=self._num_plain,
            plain_s=self._plain_s,
            is_trial=self._tried is not None,
        )
        self._num_behind = 0 if runs_drafter else self._num_behind + num_new
        self._num_unread = 0 if runs_drafter else self._num_unread
        self._was_off = not runs_drafter and (self._was_off or mode is Mode.OFF)
        self._num_plain, self._plain_s = 0, 0.0
        with self._pair.lock:
            self._count_trial_step()
            self._go_on_with(self._pair.learn(observed))
            self._text.learn(observed)
            self._mode = self._next_mode()
            load, best_rate = self._text.load, self._text.best_rate
            load.plan_if_due(self._mode, self._context_length, best_rate)

    def _begin(self, context_length: int) -> None:
        """Begins an answer, behind a prompt that the drafter may not have read."""
        has_read = self._expected_length > 0 and not self._num_unread
        num_new = context_length - self._expected_length
        self._num_unread = num_new if has_read and num_new > 0 else context_length
        self._num_behind = 0
        with self._pair.lock:
            if self._text.answer.num_tokens:
                self._text.answer = self._pair.answers.begin()
            self._mode = self._next_mode()

    def _go_on_with(self, load: LoadKnowledge) -> None:
        """Goes by what is known under the load of now; a trial under another one is over."""
        if load is not self._text.load:
            self._text = TextKnowledge(self._pair, load, self._text.answer)
            self._tried = None

    def _next_mode(self) -> Mode:
        """Returns the mode on trial, or else the best; starts a trial where the budget has room."""
        text = self._text
        if self._tried in text.load.modes:
            return self._tried
        tried = text.mode_to_try(self._num_behind, self._num_unread)
        if tried is None:
            return text.leader(self._num_unread)
        self._tried, self._num_trial_steps = tried, TRIAL_STEPS
        return tried

    def _count_trial_step(self) -> None:
        if self._tried is not None:
            self._num_trial_steps -= 1
            if self._num_trial_steps <= 0:
                self._tried = None
