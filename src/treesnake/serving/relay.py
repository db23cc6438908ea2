"""Between texts, which run on threads, and requests, which are coroutines."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from threading import Thread

from starlette.requests import Request

from treesnake.serving.tickets import StreamPiece, Ticket

Arrival = tuple[int, StreamPiece | None]
"""The number of a text with its next piece, or None at its end."""


async def pieces_of(tickets: Sequence[Ticket]) -> AsyncIterator[Arrival]:
    """Iterates over the pieces of several texts as they come.

    Raises:
        Exception: what went wrong in one of the texts.
    """
    loop = asyncio.get_running_loop()
    arrivals: asyncio.Queue[tuple[int, StreamPiece | Exception | None]] = asyncio.Queue()

    def read(number: int, ticket: Ticket) -> None:
        def arrive(piece: StreamPiece | Exception | None) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(arrivals.put_nowait, (number, piece))

        try:
            for piece in ticket:
                arrive(piece)
            arrive(None)
        except Exception as error:  # noqa: BLE001 - it is raised where the pieces are read
            arrive(error)

    for number, ticket in enumerate(tickets):
        Thread(target=read, args=(number, ticket), daemon=True).start()
    num_open = len(tickets)
    while num_open:
        number, piece = await arrivals.get()
        if isinstance(piece, Exception):
            raise piece
        num_open -= piece is None
        yield number, piece


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
