"""A socket, and the server behind it."""

import socket
from contextlib import closing
from statistics import median

import uvicorn
from starlette.applications import Starlette

from treesnake.decoder import DecoderSession, SpeculativeDecoder
from treesnake.errors import InvalidInputError
from treesnake.loading.memory import give_back_large_blocks
from treesnake.outcome import Generation
from treesnake.search.static import StaticSearch
from treesnake.serving.engine import Engine
from treesnake.shape import OFF

FINISH_S = 30
"""How long texts may go on once the server is to end."""

TRIED_PROMPT, NUM_TRIED_TOKENS = "One, two, three, one, two,", 16
"""What is decoded before the first request, so that it finds everything compiled."""


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens; port 0 takes a free one.

    Raises:
        InvalidInputError: if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise InvalidInputError(
            f"{host}:{port} cannot be listened at: {error}; choose another port, or 0 for a free "
            "one"
        ) from error


def address_of(listener: socket.socket) -> str:
    """Returns the URL of a socket that listens."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def new_server(app: Starlette) -> uvicorn.Server:
    """Returns a server that ends cleanly on SIGTERM and Ctrl-C."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=FINISH_S,
        )
    )


def serve(app: Starlette, engine: Engine, listener: socket.socket) -> None:
    """Serves until a signal ends it; what runs then may finish, within limits."""
    give_back_large_blocks()
    with closing(listener):
        try:
            new_server(app).run(sockets=[listener])
        finally:
            engine.close(finish_s=0)


def try_decoding(decoder: SpeculativeDecoder) -> float:
    """Decodes a few tokens with drafts and without; a model that cannot run fails here.

    Returns:
        The seconds of a step of plain decoding.
    """

    def generate(session: DecoderSession) -> Generation:
        return decoder.generate(TRIED_PROMPT, max_new_tokens=NUM_TRIED_TOKENS, session=session)

    generate(decoder.new_session(memory=False))
    session = decoder.new_session(memory=False)
    plain = DecoderSession(session.target, session.drafter, StaticSearch(OFF))
    return median(step.seconds.work_s for step in generate(plain).steps)
