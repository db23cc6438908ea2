"""A server on a real socket, with a target of a few numbers."""

from collections.abc import Callable, Iterator
from threading import Thread

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from treesnake import SpeculativeDecoder
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.pairs import Pair
from treesnake.serving.app import Served, create_app
from treesnake.serving.engine import Engine, EngineLimits
from treesnake.serving.server import address_of, listen, new_server
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TinyNetwork
from treesnake.testing.tokenizers import byte_level

TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
StartServer = Callable[..., str]


@pytest.fixture(scope="session")
def decoder() -> SpeculativeDecoder:
    tokenizer = byte_level()
    tokenizer.chat_template = TEMPLATE
    network = TinyNetwork(RecurrentModel(len(tokenizer), seed=3))
    pair = Pair(NetworkTargetModel(network), NetworkDrafterModel(network))
    return SpeculativeDecoder(pair, tokenizer=tokenizer, search="chain(3)")


@pytest.fixture(scope="session")
def start_server(decoder: SpeculativeDecoder) -> Iterator[StartServer]:
    """Starts servers; each gives its address."""
    running = []

    def start(
        *,
        chosen: SpeculativeDecoder = decoder,
        limits: EngineLimits | None = None,
        api_keys: tuple[str, ...] = (),
    ) -> str:
        engine = Engine(chosen, limits)
        server = new_server(create_app(Served(engine, "tiny", api_keys, 0.01)))
        listener = listen("127.0.0.1", 0)
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread, engine))
        return address_of(listener)

    yield start
    for server, thread, engine in running:
        server.should_exit = True
        thread.join()
        engine.close(finish_s=0)


@pytest.fixture(scope="session")
def server(start_server: StartServer) -> str:
    return start_server()
