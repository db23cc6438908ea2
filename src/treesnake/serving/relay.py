"""Between texts, which run on threads, and requests, which are coroutines."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from starlette.requests import Request

from treesnake.serving.tickets import Arrival, StreamPiece, Ticket


async def pieces_of(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, StreamPiece | None]]:
    """Iterates over the pieces of several texts as they come, each with the number of its text.

    The end of a text is None.

    Raises:
        Exception: what went wrong in one of the texts.
    """
    loop = asyncio.get_running_loop()
    arrivals: asyncio.Queue[tuple[int, Arrival]] = asyncio.Queue()

    def arriving(number: int) -> Callable[[Arrival], None]:
        def arrive(arrival: Arrival) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(arrivals.put_nowait, (number, arrival))

        return arrive

    for number, ticket in enumerate(tickets):
        ticket.listen(arriving(number))
    num_open = len(tickets)
    while num_open:
        number, arrival = await arrivals.get()
        if isinstance(arrival, Exception):
            raise arrival
        num_open -= arrival is None
        yield number, arrival


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
