"""Many texts at once: admission, a worker for each text that runs, and what all of them took."""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from threading import Condition, Thread

from treesnake.constraints import Constraint
from treesnake.decoder import DecoderSession, PromptLike, SpeculativeDecoder
from treesnake.errors import ContextLengthError, InvalidInputError, TreesnakeError
from treesnake.outcome import Generation
from treesnake.sampling import SamplingParams
from treesnake.serving.gathering import Gatherer, TextGivenUpError, gathered
from treesnake.serving.kept_sessions import KeptSessions
from treesnake.serving.tickets import TextRequest, Ticket

MOST_NEW_TOKENS = 4096
"""New tokens of a text of a model without an end of its context, if nothing is said."""


class QueueFullError(TreesnakeError):
    """As many texts wait as may wait, or the engine ends; the request can be sent again later."""


@dataclass(frozen=True)
class EngineLimits:
    """What an engine takes on.

    Attributes:
        max_num_seqs: texts that run at once.
        max_queued: texts that wait at most.
        cache_bytes: what sessions of texts that have ended may take in memory; 0 keeps none.
        max_model_len: tokens of a text, prompt included; None is what the target's context holds.

    Raises:
        InvalidInputError: if a number is too small.
    """

    max_num_seqs: int = 8
    max_queued: int = 64
    cache_bytes: int = 512 << 20
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        least = {"max_num_seqs": 1, "max_queued": 0, "cache_bytes": 0, "max_model_len": 2}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise InvalidInputError(f"{name} must be at least {smallest}, got {value}")


@dataclass(frozen=True)
class EngineStats:
    """What an engine does, and what the texts that have ended came to.

    Attributes:
        num_running: texts that run now.
        num_waiting: texts that wait now.
        num_ended: texts that have ended, in whatever way.
        num_prompt_tokens: tokens of their prompts.
        num_cached_tokens: those that a kept session held.
        num_new_tokens: tokens that were generated.
        num_steps: steps, those without a draft included.
        num_drafts: steps that drafted something.
        num_draft_tokens: drafted tokens.
        num_accepted_tokens: those that became output.
        accepted_by_position: for each depth, how many drafted tokens became output there.
        draft_s: seconds of work on drafting.
        score_s: seconds of work on scoring.
        cache_bytes: what kept sessions take in memory now.
        cache_hits: texts that began in a kept session.
        cache_misses: texts that did not.
        num_passes: passes over the weights of a target or drafter, prompts not counted.
        num_parts: texts in them, all passes together.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_ended: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_new_tokens: int = 0
    num_steps: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_by_position: tuple[int, ...] = ()
    draft_s: float = 0.0
    score_s: float = 0.0
    cache_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    num_passes: int = 0
    num_parts: int = 0

    def with_text(self, ticket: Ticket) -> "EngineStats":
        """Returns the counts with those of a text that has ended."""
        made = ticket.generation
        return replace(
            self,
            num_ended=self.num_ended + 1,
            num_prompt_tokens=self.num_prompt_tokens + len(ticket.prompt),
            num_cached_tokens=self.num_cached_tokens + ticket.num_cached,
            num_new_tokens=self.num_new_tokens + made.num_emitted,
            num_steps=self.num_steps + len(made.steps),
            num_drafts=self.num_drafts + sum(step.num_drafted > 0 for step in made.steps),
            num_draft_tokens=self.num_draft_tokens + made.num_drafted,
            num_accepted_tokens=self.num_accepted_tokens + made.num_accepted,
            accepted_by_position=_accepted_by_position(self.accepted_by_position, made),
            draft_s=self.draft_s + sum(step.seconds.draft_s for step in made.steps),
            score_s=self.score_s + sum(step.seconds.score_s for step in made.steps),
        )


class Engine:
    """Runs texts of one decoder, a bounded number at once; the others wait in their order.

    Any thread may call it. Each text is what it would be alone.

    Args:
        decoder: what generates.
        limits: how many texts run and wait, and what is kept of them.
    """

    def __init__(self, decoder: SpeculativeDecoder, limits: EngineLimits | None = None) -> None:
        self._gatherer = Gatherer()
        pair = gathered(decoder.pair, self._gatherer)
        self._shares_passes = pair is not decoder.pair
        self.decoder = decoder.with_pair(pair)
        self.limits = EngineLimits() if limits is None else limits
        self._kept = KeptSessions(self.decoder, self.limits.cache_bytes)
        self._checking = self.decoder.new_session()
        self._waiting: deque[Ticket] = deque()
        self._running: set[Ticket] = set()
        self._totals = EngineStats()
        self._changed = Condition()
        self._is_closed = False
        self._workers = [
            Thread(target=self._work, daemon=True, name=f"treesnake-text-{number}")
            for number in range(self.limits.max_num_seqs)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def num_running(self) -> int:
        """Texts that run."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Texts that wait."""
        with self._changed:
            return sum(not ticket.is_cancelled for ticket in self._waiting)

    @property
    def shares_passes(self) -> bool:
        """Whether texts share passes, so that they rest in between."""
        return self._shares_passes

    def call_at_rest(self, function: Callable[[], None]) -> None:
        """Has a function called whenever no text can go on at once; see `Gatherer.call_at_rest`."""
        self._gatherer.call_at_rest(function)

    @property
    def vocab_size(self) -> int:
        """The number of tokens that the target knows."""
        return self._checking.target.vocab_size

    @property
    def max_model_len(self) -> int | None:
        """Tokens of a text at most, prompt included; None if there is no limit."""
        bounds = [self.limits.max_model_len, self._checking.target.context_length]
        return min((bound for bound in bounds if bound is not None), default=None)

    @property
    def stats(self) -> EngineStats:
        """What it does, and what the texts that have ended came to."""
        with self._changed:
            totals = self._totals
        return replace(
            totals,
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            cache_bytes=self._kept.num_bytes,
            cache_hits=self._kept.num_hits,
            cache_misses=self._kept.num_misses,
            num_passes=self._gatherer.num_passes,
            num_parts=self._gatherer.num_parts,
        )

    def submit(
        self,
        prompt: PromptLike,
        params: SamplingParams,
        *,
        max_new_tokens: int | None,
        stop: Collection[str] = (),
        constraints: Sequence[Constraint] = (),
        logprobs: int | None = None,
        min_new_tokens: int | None = 0,
        echo_logprobs: int | None = None,
        user: str | None = None,
    ) -> Ticket:
        """Puts a text into the queue; most arguments are those of `SpeculativeDecoder.stream`.

        Args:
            prompt: what to continue.
            params: how to sample.
            max_new_tokens: at most so many, and as many as there is room for; None leaves it there.
                0 generates nothing.
            stop: strings that end the text.
            constraints: on the next token.
            logprobs: how many of the most probable tokens each new token tells; None is no log
                probabilities.
            min_new_tokens: no end before so many; None lets the text go on as long as it may.
            echo_logprobs: the same as `logprobs`, for the tokens of the prompt.
            user: whose text it is. Kept sessions and what was said are shared by texts of one user
                only, since speed tells what others said. None is a user, too.

        Raises:
            QueueFullError: if too many wait, or the engine is closed.
            InvalidInputError: naming the argument that cannot be right.
            ContextLengthError: if the prompt leaves no room for a new token.
        """
        with self._changed:
            self._check_room()
        encoded = self.decoder.encode(prompt)
        num_new = self._num_new(len(encoded), max_new_tokens)
        least = num_new if min_new_tokens is None else min_new_tokens
        request = TextRequest(
            encoded, params, num_new, stop, constraints, logprobs, least, echo_logprobs, user
        )
        ticket = Ticket(request, request.begin(self.decoder, self._checking))
        with self._changed:
            self._check_room()
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def close(self, *, finish_s: float | None) -> None:
        """Takes on nothing new, and waits for what runs and waits.

        Args:
            finish_s: texts that take more seconds are cancelled; None lets all finish.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._waiting or self._running), finish_s)
            for ticket in (*self._waiting, *self._running):
                ticket.cancel()
        for worker in self._workers:
            worker.join()

    def _num_new(self, num_tokens: int, wanted: int | None) -> int:
        """Returns how many tokens a text may gain."""
        most = self.max_model_len
        if most is None:
            return MOST_NEW_TOKENS if wanted is None else wanted
        if num_tokens >= most:
            raise ContextLengthError(
                f"the prompt has {num_tokens} tokens, and prompt and answer can have {most}; "
                "shorten the prompt"
            )
        return most - num_tokens if wanted is None else min(wanted, most - num_tokens)

    def _check_room(self) -> None:
        if self._is_closed:
            raise QueueFullError("the server is about to end; send the request to another one")
        idle = self.limits.max_num_seqs - len(self._running)
        num_waiting = sum(not ticket.is_cancelled for ticket in self._waiting)
        if num_waiting >= self.limits.max_queued + idle:
            raise QueueFullError(
                f"{num_waiting} texts wait, which is as many as may; try again later"
            )

    def _work(self) -> None:
        while (ticket := self._take()) is not None:
            error = self._run(ticket)
            with self._changed:
                self._running.discard(ticket)
                self._totals = self._totals.with_text(ticket)
                self._changed.notify_all()
            ticket.end(error)
            del ticket, error  # a worker that waits would hold a session

    def _take(self) -> Ticket | None:
        """Waits for the next text; returns None once none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if not self._waiting:
                return None
            ticket = self._waiting.popleft()
            self._running.add(ticket)
            return ticket

    def _run(self, ticket: Ticket) -> Exception | None:
        """Runs a text; returns what went wrong, which is no matter to the other texts."""
        if ticket.request.is_empty:
            return None
        try:
            with self._gatherer.live(lambda: ticket.is_cancelled):
                if ticket.is_cancelled:  # while it waited for its turn
                    return None
                session, num_cached = self._session_for(ticket)
                ticket.run(self.decoder, session, num_cached)
        except TextGivenUpError:
            return None
        except Exception as error:  # noqa: BLE001 - it belongs to whoever reads the text
            return error
        if ticket.first_token_s is not None:
            token_ids = ticket.generation.token_ids
            self._kept.keep(session, (*ticket.prompt.key, *token_ids)[:-1], ticket.request.user)
        return None

    def _session_for(self, ticket: Ticket) -> tuple[DecoderSession, int]:
        """Returns a session, and how much of the prompt it holds; scoring runs all of it."""
        if ticket.request.echo_logprobs is not None:
            return self.decoder.new_session(), 0
        return self._kept.take(ticket.prompt, ticket.request.user)


def _accepted_by_position(before: Sequence[int], made: Generation) -> tuple[int, ...]:
    """Returns counts of accepted tokens by depth, with those of one more text."""
    deepest = max((step.num_accepted for step in made.steps), default=0)
    counts = [*before, *[0] * (deepest - len(before))]
    for step in made.steps:
        for position in range(step.num_accepted):
            counts[position] += 1
    return tuple(counts)
