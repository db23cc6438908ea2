"""Between texts, which run on threads, and requests, which are coroutines."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from starlette.requests import Request

from treesnake.serving.engine import Engine
from treesnake.serving.tickets import Arrival, StreamPiece, Ticket

_Numbered = tuple[int, Arrival]
"""What arrived of one of the texts of a request, behind the number of the text."""


class Relay:
    """Hands the pieces of texts to the event loop, those of one pass together.

    A loop that wakes for each piece takes the interpreter from the texts with each token. So pieces
    wait until `wake` is called, which an engine does when no text can go on at once: a pass comes
    next, for which the interpreter is not needed. The end of a text does not wait.

    Args:
        is_eager: whether pieces do not wait either.
    """

    def __init__(self, *, is_eager: bool) -> None:
        self._is_eager = is_eager
        self._is_waking = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: deque[tuple[asyncio.Queue[_Numbered], _Numbered]] = deque()

    @classmethod
    def of(cls, engine: Engine) -> "Relay":
        """Returns the one for the texts of an engine."""
        relay = cls(is_eager=not engine.shares_passes)
        engine.call_at_rest(relay.wake)
        return relay

    async def pieces_of(
        self, tickets: Sequence[Ticket]
    ) -> AsyncIterator[tuple[int, StreamPiece | None]]:
        """Iterates over the pieces of several texts as they come, each with the number of its text.

        The end of a text is None.

        Raises:
            Exception: what went wrong in one of the texts.
        """
        self._loop = asyncio.get_running_loop()
        queue: asyncio.Queue[_Numbered] = asyncio.Queue()
        for number, ticket in enumerate(tickets):
            ticket.listen(self._arriving(queue, number))
        self.wake()
        num_open = len(tickets)
        while num_open:
            number, arrival = await queue.get()
            if isinstance(arrival, Exception):
                raise arrival
            num_open -= arrival is None
            yield number, arrival

    def wake(self) -> None:
        """Lets the loop hand on what has arrived; any thread may call it."""
        if self._arrived and not self._is_waking and self._loop is not None:
            self._is_waking = True
            with suppress(RuntimeError):  # the loop has ended, and nobody listens
                self._loop.call_soon_threadsafe(self._hand_on)

    def _arriving(
        self, queue: "asyncio.Queue[_Numbered]", number: int
    ) -> Callable[[Arrival], None]:
        def arrive(arrival: Arrival) -> None:
            self._arrived.append((queue, (number, arrival)))
            if self._is_eager or not isinstance(arrival, StreamPiece):
                self.wake()

        return arrive

    def _hand_on(self) -> None:
        self._is_waking = False  # first, so that what arrives from now on wakes the loop again
        while self._arrived:
            queue, numbered = self._arrived.popleft()
            queue.put_nowait(numbered)


@asynccontextmanager
async def cancelled_with(request: Request, tickets: Sequence[Ticket]) -> AsyncIterator[None]:
    """Cancels texts as soon as their client is gone, and on every way out."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        cancel_all()

    def cancel_all() -> None:
        for ticket in tickets:
            ticket.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        cancel_all()
