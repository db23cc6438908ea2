"""One text that an engine was asked for: its pieces as they come, and a way to give it up."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Lock
from time import perf_counter

from treesnake.constraints import Constraint
from treesnake.decoder import DecoderSession, SpeculativeDecoder, TextStream
from treesnake.likelihood import score_text
from treesnake.logprobs import TokenLogprobs
from treesnake.outcome import FinishReason, Generation, Step
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams


@dataclass(frozen=True, eq=False)
class TextRequest:
    """What one text shall be, see `SpeculativeDecoder.stream`, and whose it is.

    Attributes:
        max_new_tokens: 0 generates nothing.
        echo_logprobs: how many of the most probable tokens each position of the prompt tells; None
            for no log probabilities of the prompt.
    """

    prompt: Prompt
    params: SamplingParams
    max_new_tokens: int
    stop: Collection[str] = ()
    constraints: Sequence[Constraint] = ()
    logprobs: int | None = None
    min_new_tokens: int = 0
    echo_logprobs: int | None = None
    user: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be run."""
        return self.max_new_tokens == 0 and self.echo_logprobs is None

    def begin(self, decoder: SpeculativeDecoder, session: DecoderSession) -> TextStream:
        """Returns the text as a stream in a session; nothing runs yet.

        Raises:
            InvalidInputError: naming the argument that cannot be right.
            ContextLengthError: if the prompt does not fit into the target's context.
        """
        return decoder.stream(
            self.prompt,
            self.params,
            max_new_tokens=max(self.max_new_tokens, 1),
            stop=self.stop,
            constraints=self.constraints,
            logprobs=self.logprobs,
            min_new_tokens=self.min_new_tokens,
            session=session,
        )


@dataclass(frozen=True, eq=False)
class StreamPiece:
    """What one step added to a text.

    Attributes:
        text: what became certain; it may lag behind the tokens.
        step: the step; None for text that was certain only at the end.
        echo: what the target said of each token of the prompt but the first; None but in the first
            piece of a text that was asked for it.
    """

    text: str
    step: Step | None
    echo: tuple[TokenLogprobs, ...] | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The new tokens."""
        return self.step.emitted if self.step else ()

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """What the target said of each new token, where that was asked for."""
        return (self.step.logprobs or ()) if self.step else ()


Arrival = StreamPiece | Exception | None
"""A piece of a text, or its end: by an error, or by none."""


class Ticket:
    """One text of an engine: iterate once to get its pieces; any thread may cancel it.

    Args:
        request: what was asked for.
        stream: an empty one of the same request, until the text begins.

    Attributes:
        request: what was asked for.
        num_cached: tokens of the prompt that a kept session held when the text began.
    """

    def __init__(self, request: TextRequest, stream: TextStream) -> None:
        self.request = request
        self.num_cached = 0
        self._stream = stream
        self._pieces: SimpleQueue[Arrival] = SimpleQueue()
        self._arrive: Callable[[Arrival], None] = self._pieces.put
        self._lock = Lock()
        self._is_cancelled = False
        self._submitted_at = perf_counter()
        self._began_at: float | None = None
        self._first_at: float | None = None

    @property
    def prompt(self) -> Prompt:
        """What the text continues."""
        return self.request.prompt

    @property
    def generation(self) -> Generation:
        """What was generated so far; unless it came to its end, it counts as cancelled."""
        made = self._stream.generation
        wants_none = self.request.max_new_tokens == 0
        return replace(made, finish_reason=FinishReason.LENGTH) if wants_none else made

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody gave it up."""
        return self._is_cancelled

    @property
    def queued_s(self) -> float | None:
        """The seconds before the text began; None if it has not begun."""
        return None if self._began_at is None else self._began_at - self._submitted_at

    @property
    def first_token_s(self) -> float | None:
        """The seconds between the request and the first tokens; None if there are none yet."""
        return None if self._first_at is None else self._first_at - self._submitted_at

    def __iter__(self) -> Iterator[StreamPiece]:
        """Waits for the pieces.

        Raises:
            TreesnakeError: what went wrong in this text; other errors of its constraints, too.
        """
        while (piece := self._pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def listen(self, arrive: Callable[[Arrival], None]) -> None:
        """Hands the pieces to a function instead, on the threads that make them.

        Those that are there already come first, on this thread.
        """
        with self._lock:
            while not self._pieces.empty():
                arrive(self._pieces.get())
            self._arrive = arrive

    def wait(self) -> Generation:
        """Waits for the end and returns the whole text; raises what iterating raises."""
        for _ in self:
            pass
        return self.generation

    def cancel(self) -> None:
        """Ends the text behind the step under way; one that waits never begins."""
        self._is_cancelled = True
        self._stream.cancel()

    def run(self, decoder: SpeculativeDecoder, session: DecoderSession, num_cached: int) -> None:
        """Runs the text on the calling thread, for whoever reads the pieces.

        Args:
            decoder: what generates.
            session: the text's own.
            num_cached: tokens of the prompt that the session holds.
        """
        self.num_cached = num_cached
        self._began_at = perf_counter()
        if self.request.echo_logprobs is not None:
            self._score(session, self.request.echo_logprobs)
        if self.request.max_new_tokens == 0:
            return
        stream = self.request.begin(decoder, session)
        self._stream = stream
        if self._is_cancelled:  # before there was this stream
            stream.cancel()
        step = None
        for text in stream:
            is_new = stream.last_step is not step
            step = stream.last_step
            self._put(StreamPiece(text, step if is_new else None))

    def _score(self, session: DecoderSession, num_top: int) -> None:
        """Tells what the target says of the prompt; the session holds the prompt then."""
        echo: list[TokenLogprobs] = []
        for part in score_text(session.target, self.prompt, num_top):
            if self._is_cancelled:
                return
            echo += part
        self._put(StreamPiece("", None, tuple(echo)))

    def end(self, error: Exception | None) -> None:
        """Tells whoever reads the pieces that there are no more, by an error if there was one."""
        self._put(error)

    def _put(self, arrival: Arrival) -> None:
        if self._first_at is None and isinstance(arrival, StreamPiece):
            self._first_at = perf_counter()
        with self._lock:
            self._arrive(arrival)
