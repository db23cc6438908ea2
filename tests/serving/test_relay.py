"""Pieces reach the event loop together, once the texts are at rest; an end comes at once."""

import asyncio

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from treesnake import SamplingParams, SpeculativeDecoder
from treesnake.serving.engine import Engine
from treesnake.serving.relay import Relay
from treesnake.serving.tickets import StreamPiece, TextRequest, Ticket


def new_ticket(decoder: SpeculativeDecoder) -> Ticket:
    request = TextRequest(decoder.encode("draft"), SamplingParams(), 6, min_new_tokens=6)
    return Ticket(request, request.begin(decoder, decoder.new_session()))


async def turns_of_the_loop() -> None:
    for _ in range(9):
        await asyncio.sleep(0)


@pytest.mark.parametrize("is_eager", [False, True])
def test_pieces_wait_until_the_loop_is_woken(decoder: SpeculativeDecoder, is_eager: bool) -> None:
    relay, ticket = Relay(is_eager=is_eager), new_ticket(decoder)

    async def read() -> None:
        got: list[StreamPiece | None] = []

        async def take() -> None:
            async for _, piece in relay.pieces_of([ticket]):
                got.append(piece)

        taking = asyncio.create_task(take())
        await turns_of_the_loop()
        ticket.run(decoder, decoder.new_session(), 0)
        await turns_of_the_loop()
        assert bool(got) == is_eager
        relay.wake()
        await turns_of_the_loop()
        tokens = [token for piece in got if piece for token in piece.token_ids]
        assert tuple(tokens) == ticket.generation.token_ids
        ticket.end(None)
        await taking
        assert got[-1] is None

    asyncio.run(read())


def test_what_came_before_anybody_listened_is_there(decoder: SpeculativeDecoder) -> None:
    relay, ticket = Relay(is_eager=False), new_ticket(decoder)
    ticket.run(decoder, decoder.new_session(), 0)
    ticket.end(None)

    async def read() -> list[int]:
        pieces = [piece async for _, piece in relay.pieces_of([ticket])]
        return [token for piece in pieces if piece for token in piece.token_ids]

    assert tuple(asyncio.run(read())) == ticket.generation.token_ids


def test_an_engine_wakes_the_loop_between_passes(decoder: SpeculativeDecoder) -> None:
    engine = Engine(decoder)
    relay = Relay.of(engine)
    assert engine.shares_passes

    async def read() -> int:
        ticket = engine.submit("draft", SamplingParams(), max_new_tokens=9)
        num_new = 0
        async for _, piece in relay.pieces_of([ticket]):
            num_new += len(piece.token_ids) if piece else 0
        return num_new

    assert asyncio.run(read()) == 9
    engine.close(finish_s=None)
