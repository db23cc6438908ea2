"""A worker of NVIDIA Dynamo and Dynamo's frontend: two processes that find each other by files."""

import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from hosting.clients import (
    LONG,
    Client,
    Messages,
    Result,
    comes_true,
    compared,
    conversations,
    free_address,
    plain_decoding,
    port_of,
)

START_S = 150.0
METRICS_PORTS = range(20000, 20100)
"""Dynamo takes no larger ones than 32767 for a worker's metrics."""


def run(arguments: Namespace) -> Result:
    """Answers whole, streamed and with stop strings; a client that leaves; a wrong request."""
    asked = conversations(arguments)
    decode = plain_decoding(arguments.target, arguments.tokens)
    with _running(arguments.target) as (frontend, worker):
        client = Client(frontend, arguments.target, arguments.tokens)
        result = compared(client, asked, decode)
        result["left_after"] = _left(worker, client, asked[0])
        body = {"model": arguments.target, "messages": asked[0], "n": 2}
        wrong = httpx.post(f"{frontend}/v1/chat/completions", json=body, timeout=120)
        result["status_where_two_answers_are_asked_for"] = wrong.status_code
        names = ("treesnake_", "dynamo_component_")
        page = httpx.get(f"{worker}/metrics", timeout=60).text
        result["metrics"] = {
            name: sum(line.startswith(f"# TYPE {name}") for line in page.splitlines())
            for name in names
        }
    return {"versions": {"ai-dynamo": version("ai-dynamo")}, **result}


@contextmanager
def _running(target: str) -> Iterator[tuple[str, str]]:
    """Yields the addresses of the frontend and of the worker's own metrics."""
    frontend, worker = free_address(), free_address(METRICS_PORTS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="treesnake-")))
        environment = {**os.environ, "DYN_FILE_KV": str(folder / "found")}
        python = [sys.executable, "-m"]
        commands = {
            "worker": (
                [*python, "treesnake.integrations.dynamo", "--model", target],
                {"DYN_SYSTEM_PORT": str(port_of(worker))},
            ),
            "frontend": (
                [*python, "dynamo.frontend", "--http-port", str(port_of(frontend))],
                {},
            ),
        }
        processes = []
        for name, (command, own) in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            process = subprocess.Popen(
                [*command, "--discovery-backend", "file"],
                env=environment | own,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(_end, process)
            processes.append(process)

        def has_come_so_far() -> bool:
            return _serves(frontend, target) or any(each.poll() is not None for each in processes)

        comes_true(has_come_so_far, START_S)
        if not _serves(frontend, target):
            logs = [path.read_text() for path in sorted(folder.glob("*.log"))]
            sys.exit("\n".join(["the frontend does not find the worker", *logs]))
        yield frontend, worker


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serves(address: str, target: str) -> bool:
    try:
        found = httpx.get(f"{address}/v1/models", timeout=5).json()["data"]
    except (httpx.HTTPError, ValueError):
        return False
    return any(each["id"] == target for each in found)


def _left(worker: str, client: Client, messages: Messages) -> Result:
    """Leaves a long answer, and looks how long the worker goes on with it."""

    def number(name: str) -> float:
        lines = httpx.get(f"{worker}/metrics", timeout=60).text.splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith(f"treesnake_{name}{{")
        )

    before = number("generation_tokens_total")
    client.leave(messages, session=None, num_tokens=LONG)
    has_ended = comes_true(lambda: number("num_requests_running") == 0)
    made = number("generation_tokens_total") - before
    return {"has_ended": has_ended, "tokens": int(made), "tokens_asked_for": LONG}
