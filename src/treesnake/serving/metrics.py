"""Numbers for Prometheus."""

from collections.abc import AsyncIterator, Sequence
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from treesnake.outcome import Generation, Step
from treesnake.serving.engine import Engine
from treesnake.serving.relay import Relay
from treesnake.serving.tickets import StreamPiece, Ticket

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper ends of the buckets of histograms."""


class Metrics:
    """What the server has done so far; its methods may be called from one thread only.

    Attributes:
        registry: where the numbers are.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self._relay = Relay.of(engine)
        self._drafts = self._counter("spec_decode_num_drafts", "Trees that were drafted")
        self._draft_tokens = self._counter("spec_decode_num_draft_tokens", "Drafted tokens")
        self._accepted = self._counter(
            "spec_decode_num_accepted_tokens", "Drafted tokens that became output"
        )
        self._accepted_at = Counter(
            "treesnake_spec_decode_num_accepted_tokens_per_pos",
            "Drafted tokens that became output, by their depth, from 0",
            ["position"],
            registry=self.registry,
        )
        self._draft_s = self._counter("draft_seconds", "Seconds of drafting")
        self._score_s = self._counter("score_seconds", "Seconds of scoring")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self._new_tokens = self._counter("generation_tokens", "New tokens")
        self._finished = Counter(
            "treesnake_request_success",
            "Texts that ended, by reason",
            ["finished_reason"],
            registry=self.registry,
        )
        self._first = self._histogram("time_to_first_token_seconds", "From request to first token")
        self._each = self._histogram("time_per_output_token_seconds", "Between tokens, by text")
        self._gauge("num_requests_running", "Texts that run").set_function(
            lambda: engine.num_running
        )
        self._gauge("num_requests_waiting", "Texts that wait").set_function(
            lambda: engine.num_waiting
        )

        self._gauge("cache_bytes", "Memory of kept sessions").set_function(
            lambda: engine.stats.cache_bytes
        )
        self._gauge("cache_hits", "Texts that began in a kept session").set_function(
            lambda: engine.stats.cache_hits
        )
        self._gauge("cache_misses", "Texts that did not").set_function(
            lambda: engine.stats.cache_misses
        )

    async def counted_pieces(
        self, tickets: Sequence[Ticket], asked_at: float
    ) -> AsyncIterator[tuple[int, StreamPiece | None]]:
        """Iterates over the pieces of texts as `Relay.pieces_of` does, and counts them.

        Args:
            tickets: the texts.
            asked_at: a reading of `perf_counter` when the request came.
        """
        begun: set[int] = set()
        async for number, piece in self._relay.pieces_of(tickets):
            if piece is None:
                self.observe_end(len(tickets[number].prompt), tickets[number].generation)
            elif piece.step:
                if number not in begun:
                    begun.add(number)
                    self.observe_first(asked_at)
                self.observe_step(piece.step)
            yield number, piece

    def observe_first(self, asked_at: float) -> None:
        """Takes note of a text's first token; `asked_at` is a reading of `perf_counter`."""
        self._first.observe(perf_counter() - asked_at)

    def observe_step(self, step: Step) -> None:
        """Takes note of a step."""
        if step.num_drafted:
            self._drafts.inc()
            self._draft_tokens.inc(step.num_drafted)
            self._accepted.inc(step.num_accepted)
        for position in range(step.num_accepted):
            self._accepted_at.labels(str(position)).inc()
        self._draft_s.inc(step.seconds.draft_s)
        self._score_s.inc(step.seconds.score_s)
        self._new_tokens.inc(len(step.emitted))

    def observe_end(self, num_prompt_tokens: int, generation: Generation) -> None:
        """Takes note of a text that has ended."""
        self._prompt_tokens.inc(num_prompt_tokens)
        self._finished.labels(str(generation.finish_reason)).inc()
        if generation.num_emitted:
            self._each.observe(generation.decode_s / generation.num_emitted)

    def page(self) -> bytes:
        """Returns all numbers in the text format of Prometheus."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"treesnake_{name}", text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"treesnake_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"treesnake_{name}", text, registry=self.registry, buckets=SECONDS)
