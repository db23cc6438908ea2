"""A drafter that goes on learning: its output layer follows what the target says.

The target is computed anyway, so what it says costs nothing to see (OmniDraft, Ramakrishnan et al.
2025; OnlineSPEC 2026). Between texts the drafter's network runs over new answers, which gives the
hidden states that its output layer saw, and the layer takes a few steps (`output_steps`). Every
fourth text is held out: steps are never made on it, and they stay only if they make it more
probable. Else the layer remains what it was and the next steps are smaller.

Learning takes at most a share of the time that decoding took. What that does not allow for is not
learned from. No text changes by it: what is drafted does, and the target decides as before.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.drafters.kept_output import KeptOutput
from treesnake.drafters.output_steps import Places, SecondMoment, log_losses, step_along
from treesnake.drafters.said_texts import SaidText, TextReader
from treesnake.errors import InvalidInputError
from treesnake.models.output_layer import OutputLayer
from treesnake.threads import new_lock, on_one_thread

TIME_SHARE = 0.02
"""The share of the seconds of decoding that learning may take."""

PLACES_PER_UPDATE = 2048
"""Tokens that are learned from at once, those held out counted."""

HELD_OUT_EVERY = 4
"""One text in so many is held out."""

MOST_HELD_OUT = 1024
"""Places of the latest texts that were held out."""

MOST_WAITING = 4 * PLACES_PER_UPDATE
"""Tokens of texts that wait to be learned from; the oldest are dropped."""

FIRST_RATE = 1.0
SMALLEST_RATE = 0.01
LARGEST_RATE = 2.0
SLOWER, FASTER = 0.5, 1.2
"""What the rate is multiplied with after steps that did not stay, and after those that did."""

ERROR_MARGIN = 2.0
"""Steps stay if what is held out became more probable by so many standard errors."""

DAMPING = 1.0
DISCOUNT = 0.98

FIRST_PLACE_S = 2e-4
"""What learning from a place is taken to cost before it was measured."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearningReport:
    """What a learner did.

    Attributes:
        num_places: tokens that it learned from, those held out counted.
        num_updates: how often it learned.
        num_kept: how often that stayed.
        learning_s: the seconds of that.
        decoding_s: the seconds of the texts that it saw.
        loss_before: the mean log loss of what was held out, before the last update.
        loss_after: and after it, whether that stayed or not.
    """

    num_places: int = 0
    num_updates: int = 0
    num_kept: int = 0
    learning_s: float = 0.0
    decoding_s: float = 0.0
    loss_before: float = 0.0
    loss_after: float = 0.0


@dataclass(frozen=True)
class _Update:
    """The mean log loss of what is held out, before some steps and after them."""

    loss_before: float
    loss_after: float
    stays: bool

    @classmethod
    def of(cls, before: Float[Tensor, " places"], after: Float[Tensor, " places"]) -> "_Update":
        """Compares them place by place: what is not clearly better is undone."""
        gains = before - after
        error = gains.std(correction=0) / len(gains) ** 0.5
        stays = bool(gains.mean() > ERROR_MARGIN * error)
        return cls(float(before.mean()), float(after.mean()), stays)


class Learner:
    """Teaches the output layer of one network. Any thread may add texts; one at a time learns.

    Args:
        reader: reads what the target says, in the network's tokens.
        kept: where the output layer is kept for the next process; None forgets it with this one.
        time_share: the share of the seconds of decoding that learning may take.

    Raises:
        InvalidInputError: if the network's output layer cannot be exchanged.
    """

    def __init__(
        self, reader: TextReader, kept: KeptOutput | None = None, time_share: float = TIME_SHARE
    ) -> None:
        network: object = reader.network
        if not isinstance(network, OutputLayer):
            raise InvalidInputError(
                f"the drafter cannot learn: the output layer of a {type(network).__name__} cannot "
                "be exchanged; learn with a Mamba or Mamba-2, such as the drafter auto"
            )
        self._network = network
        self._reader = reader
        self._kept = kept
        self._time_share = time_share
        self._weight = network.output_weight()
        size = self._weight.shape[1]
        self._moment = SecondMoment(size, damping=DAMPING, discount=DISCOUNT)
        self._waiting: deque[SaidText] = deque()
        self._num_read = 0
        self._held_out: Places | None = None
        self._rate = FIRST_RATE
        self._place_s = FIRST_PLACE_S
        self._lock = new_lock()
        self._is_learning = new_lock()
        self.report = LearningReport()
        learned = None if kept is None else kept.read(self._weight)
        if learned is not None:
            self._take_over(learned)

    def add(self, text: SaidText, decoding_s: float) -> None:
        """Takes note of an answer and of the seconds that it took."""
        with self._lock:
            self._waiting.append(text)
            while self._num_waiting - len(self._waiting[0].token_ids) > MOST_WAITING:
                self._waiting.popleft()
            self.report = replace(self.report, decoding_s=self.report.decoding_s + decoding_s)

    def learn_if_due(self) -> None:
        """Learns from the texts that wait, if there are enough and the time allows for it.

        Another thread that learns is not waited for.
        """
        if not self._is_learning.acquire(blocking=False):
            return
        try:
            texts = self._take()
            if texts:
                begun = perf_counter()
                found = self._learn(texts)
                self._book(texts, found, perf_counter() - begun)
        finally:
            self._is_learning.release()

    @property
    def _num_waiting(self) -> int:
        return sum(len(text.token_ids) for text in self._waiting)

    def _take(self) -> list[SaidText]:
        """Returns the texts that are to be learned from now; none if it is not time yet."""
        with self._lock:
            report = self.report
            allowed_s = self._time_share * report.decoding_s - report.learning_s
            if self._num_waiting < PLACES_PER_UPDATE:
                return []
            if allowed_s < PLACES_PER_UPDATE * self._place_s:
                return []
            texts, num_places = list[SaidText](), 0
            while self._waiting and num_places < PLACES_PER_UPDATE:
                texts.append(self._waiting.popleft())
                num_places += len(texts[-1].token_ids)
            return texts

    def _learn(self, texts: Sequence[SaidText]) -> _Update | None:
        """Makes steps on most of the texts, and keeps them if they suit the others."""
        shown, held_out = list[Places](), list[Places]()
        for read in map(self._reader.read, texts):
            if len(read.places):
                self._num_read += 1
                places = Places.of(read, self._network.hidden_states(read.token_ids))
                (shown if self._num_read % HELD_OUT_EVERY else held_out).append(places)
        if held_out:
            before = [] if self._held_out is None else [self._held_out]
            self._held_out = Places.joined([*before, *held_out])[-MOST_HELD_OUT:]
        if not shown or self._held_out is None:
            return None
        return self._step(Places.joined(shown), self._held_out)

    @on_one_thread
    def _step(self, places: Places, held_out: Places) -> _Update:
        """Changes the output layer by steps on some places, unless what is held out suffers."""
        self._moment.observe(places.hidden)
        outputs = torch.cat([places.outputs, held_out.outputs]).unique()
        weight = self._weight.clone()
        step_along(weight, places, outputs, self._moment.inverse(), self._rate)
        before, after = (log_losses(each, held_out, outputs) for each in (self._weight, weight))
        update = _Update.of(before, after)
        if update.stays:
            self._take_over(weight)
            if self._kept is not None:
                self._kept.write(weight)
        factor = FASTER if update.stays else SLOWER
        self._rate = min(max(self._rate * factor, SMALLEST_RATE), LARGEST_RATE)
        logger.info(
            "learned from %d tokens: the log loss of %d that were held out was %.4f and is %.4f, "
            "so this %s",
            len(places),
            len(held_out),
            update.loss_before,
            update.loss_after,
            "stays" if update.stays else "is undone",
        )
        return update

    def _take_over(self, weight: Float[Tensor, "outputs hidden"]) -> None:
        self._weight = weight
        self._network.replace_output(weight)

    def _book(self, texts: Sequence[SaidText], update: _Update | None, seconds: float) -> None:
        num_places = sum(len(text.token_ids) for text in texts)
        with self._lock:
            self._place_s = seconds / num_places
            self.report = replace(
                self.report,
                num_places=self.report.num_places + num_places,
                learning_s=self.report.learning_s + seconds,
            )
            if update is not None:
                self.report = replace(
                    self.report,
                    num_updates=self.report.num_updates + 1,
                    num_kept=self.report.num_kept + update.stays,
                    loss_before=update.loss_before,
                    loss_after=update.loss_after,
                )
