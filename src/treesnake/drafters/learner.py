"""A drafter that goes on learning: its output layer follows what the target says.

The target is computed anyway, so what it says costs nothing to see (OmniDraft, Ramakrishnan et al.
2025; OnlineSPEC 2026). Between texts the drafter's network runs over new answers, which gives the
hidden states that its output layer saw, and the layer takes a few steps (`output_steps`). Every
fourth text is held out: steps are never made on it, and they stay only if they make it more
probable. Else the layer remains what it was and the next steps are smaller.

Nobody waits for it. When a text has ended, a thread learns for a share of the seconds that its
decoding took, in slices of some milliseconds, and goes on behind the next text. What that does not
allow for is not learned from. No text changes by it: what is drafted does, and the target decides
as before.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator
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
from treesnake.threads import new_lock

TIME_SHARE = 0.02
"""The share of the seconds of a text's decoding that learning may take behind it."""

PLACES_PER_UPDATE = 2048
"""Tokens that are learned from at once, those held out counted."""

HELD_OUT_EVERY = 4
"""One text in so many is held out."""

MOST_HELD_OUT = 1024
"""Places of the latest texts that were held out."""

FIRST_RATE = 1.0
SMALLEST_RATE = 0.01
LARGEST_RATE = 2.0
SLOWER, FASTER = 0.5, 1.2
"""What the rate is multiplied with after steps that did not stay, and after those that did."""

ERROR_MARGIN = 2.0
"""Steps stay if what is held out became more probable by so many standard errors."""

DAMPING = 1.0
DISCOUNT = 0.98

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
        self._allowed_s = 0.0
        self._num_read = 0
        self._num_places = 0
        self._shown = list[Places]()
        self._held_out = list[Places]()
        self._rate = FIRST_RATE
        self._slices: Iterator[None] | None = None
        self._thread: threading.Thread | None = None
        self._lock = new_lock()
        self._is_learning = new_lock()
        self.report = LearningReport()
        learned = None if kept is None else kept.read(self._weight)
        if learned is not None:
            self._take_over(learned)

    @property
    def reads_shares(self) -> bool:
        """Whether it learns from what the target held probable, and not from the text alone."""
        return self._reader.reads_shares

    @property
    def has_enough(self) -> bool:
        """Whether there is more to learn from than there was time for; taking notes is in vain."""
        with self._lock:
            return sum(len(text.token_ids) for text in self._waiting) >= PLACES_PER_UPDATE

    def add(self, text: SaidText | None, decoding_s: float) -> None:
        """Takes over an answer, and allows for learning by the seconds that it took.

        What an earlier answer allowed for and learning did not need is not saved up, so that no
        text is followed by more learning than its own seconds allow for.

        Args:
            text: None for one of which no note was taken.
            decoding_s: of the answer.
        """
        with self._lock:
            if text is not None:
                self._waiting.append(text)
            self._allowed_s = min(self._allowed_s, 0.0) + self._time_share * decoding_s
            self.report = replace(self.report, decoding_s=self.report.decoding_s + decoding_s)

    def learn_aside(self) -> None:
        """Lets a thread learn what there is time for; the caller does not wait for it."""
        with self._lock:
            is_idle = self._thread is None or not self._thread.is_alive()
            if is_idle and self._allowed_s > 0:
                self._thread = threading.Thread(target=self.learn, name="treesnake-learner")
                self._thread.start()

    def wait(self) -> None:
        """Waits until the thread of `learn_aside` has ended."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def learn(self) -> None:
        """Learns from the texts that wait, as long as there is time.

        Another thread that learns is not waited for. A process that ends is held up for a slice.
        """
        if not self._is_learning.acquire(blocking=False):
            return
        try:
            # Behind a fork there is none: the parent's thread was in the middle of it.
            slices, self._slices = self._slices, None
            slices = self._learn() if slices is None else slices
            while self._allowed_s > 0 and threading.main_thread().is_alive():
                begun = perf_counter()
                is_at_end = next(slices, slices) is slices
                self._book(perf_counter() - begun)
                if is_at_end:
                    return
            self._slices = slices
        finally:
            self._is_learning.release()

    def _take(self) -> SaidText | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _learn(self) -> Iterator[None]:
        """Learns from the texts that wait; yields behind each slice of some milliseconds."""
        while (text := self._take()) is not None:
            yield from self._read(text)
            if self._num_places >= PLACES_PER_UPDATE:
                yield from self._update()

    def _read(self, text: SaidText) -> Iterator[None]:
        """Adds a text to those that are learned from next, or to those that are held out."""
        self._num_places += len(text.token_ids)
        read = self._reader.read(text)
        if not len(read.places):
            return
        hidden = list[Float[Tensor, "_ hidden"]]()
        for part in self._network.hidden_states(read.token_ids):
            hidden.append(part)
            yield
        self._num_read += 1
        kind = self._shown if self._num_read % HELD_OUT_EVERY else self._held_out
        kind.append(Places.of(read, hidden))

    def _update(self) -> Iterator[None]:
        """Makes steps on what was read, and keeps them if they suit what is held out."""
        shown, self._shown = self._shown, list[Places]()
        with self._lock:
            num_places = self.report.num_places + self._num_places
            self.report = replace(self.report, num_places=num_places)
        self._num_places = 0
        if self._held_out:
            self._held_out = [Places.joined(self._held_out)[-MOST_HELD_OUT:]]
        if shown and self._held_out:
            yield from self._step(Places.joined(shown), self._held_out[0])

    def _step(self, places: Places, held_out: Places) -> Iterator[None]:
        """Changes the output layer by steps on some places, unless what is held out suffers."""
        self._moment.observe(places.hidden)
        inverse = self._moment.inverse()
        yield
        outputs = torch.cat([places.outputs, held_out.outputs]).unique()
        rows = self._weight[outputs]
        before = log_losses(rows, held_out, outputs)
        yield
        for batch in places.batches():
            step_along(rows, batch, outputs, inverse, self._rate)
            yield
        after = log_losses(rows, held_out, outputs)
        yield
        update = _Update.of(before, after)
        if update.stays:
            weight = self._weight.clone()
            weight[outputs] = rows
            self._take_over(weight)
            yield
            if self._kept is not None:
                self._kept.write(weight)
        self._note(update, len(places), len(held_out))

    def _take_over(self, weight: Float[Tensor, "outputs hidden"]) -> None:
        self._weight = weight
        self._network.replace_output(weight)

    def _note(self, update: _Update, num_places: int, num_held_out: int) -> None:
        factor = FASTER if update.stays else SLOWER
        self._rate = min(max(self._rate * factor, SMALLEST_RATE), LARGEST_RATE)
        with self._lock:
            self.report = replace(
                self.report,
                num_updates=self.report.num_updates + 1,
                num_kept=self.report.num_kept + update.stays,
                loss_before=update.loss_before,
                loss_after=update.loss_after,
            )
        logger.info(
            "learned from %d tokens: the log loss of %d that were held out was %.4f and is %.4f, "
            "so this %s",
            num_places,
            num_held_out,
            update.loss_before,
            update.loss_after,
            "stays" if update.stays else "is undone",
        )

    def _book(self, seconds: float) -> None:
        with self._lock:
            self._allowed_s -= seconds
            self.report = replace(self.report, learning_s=self.report.learning_s + seconds)
