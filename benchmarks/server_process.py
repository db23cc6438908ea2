"""Servers in processes of their own, for scripts that measure them."""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from treesnake.conversation import user_message
from treesnake.errors import ServerError
from treesnake.evaluation.bench.server_client import ServerAddress, ServerClient

START_S = 600
"""How long a server may take to answer its first request."""


@contextmanager
def started(name: str, command: Sequence[str], port: int, model: str) -> Iterator[ServerClient]:
    """Starts a server and waits until it answers.

    Raises:
        ServerError: if it ends, with what it printed last.
    """
    client = ServerClient(ServerAddress(name, f"http://127.0.0.1:{port}", model))
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            command, stdout=printed, stderr=printed, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
        try:
            until = time.monotonic() + START_S
            while True:
                try:
                    client.answer(model, [user_message("Hello")], 1)
                    break
                except ServerError:
                    if process.poll() is not None or time.monotonic() > until:
                        printed.seek(0)
                        last = printed.read().decode(errors="replace").strip().splitlines()[-1:]
                        raise ServerError(f"{name} does not start: {' '.join(last)}") from None
                time.sleep(0.2)
            yield client
        finally:
            process.kill()
            process.wait()


def free_port() -> int:
    """Returns a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
