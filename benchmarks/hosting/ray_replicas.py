"""Two replicas of `treesnake serve` on Ray Serve, of which one is killed under load."""

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

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

NUM_REPLICAS = 2
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
}
"""Where others load a machine, Ray would take its own proxy for dead, or end replicas because
memory is short."""


def run(arguments: Namespace) -> Result:
    """Answers, kept conversations, a client that leaves, a replica that is killed under load."""
    ray: Any = import_module("ray")
    asked = conversations(arguments)
    decode = plain_decoding(arguments.target, arguments.tokens)
    with _deployed(ray, arguments.target) as address:
        client = Client(address, arguments.target, arguments.tokens)
        result = compared(client, asked, decode)
        result["second_turns"] = len(asked)
        for name, header in (("by_session", True), ("without_session", False)):
            result[f"second_turns_kept_{name}"] = _kept_turns(client, asked, header=header)
        result["left_after"] = _left(address, client, asked[0])
        result |= _killed(ray, address, client, asked, arguments.tokens)
        result |= {
            f"{name}_afterwards": count
            for name, count in compared(client, asked, decode).items()
            if name.endswith("_equal")
        }
    return {"versions": {"ray": version("ray")}, "replicas": NUM_REPLICAS, **result}


@contextmanager
def _deployed(ray: Any, target: str) -> Iterator[str]:
    """Yields the address of two replicas."""
    address = free_address()
    with patch.dict(os.environ, ENVIRONMENT):  # read by each process of Ray when it starts
        serve: Any = import_module("ray.serve")
        ours: Any = import_module("treesnake.integrations.ray_serve")
        ray.init(num_cpus=NUM_REPLICAS, include_dashboard=False, object_store_memory=80 << 20)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port_of(address)})
            settings = ours.Settings(
                target=target,
                min_replicas=NUM_REPLICAS,
                max_replicas=NUM_REPLICAS,
                num_cpus=0.5,
                max_num_seqs=4,
            )
            serve.run(ours.build(settings))
            yield address
        finally:
            serve.shutdown()
            ray.shutdown()


def _kept_turns(client: Client, asked: list[Messages], *, header: bool) -> int:
    """Returns how many second turns went on from the state that the first one left."""
    kept = 0
    for number, messages in enumerate(asked):
        session = f"session-{number}" if header else None
        # A word of its own, so that no other run left a state for it.
        first = [{"role": "system", "content": f"Run {header}{number}."}, *messages]
        text = client.answer(first, session=session).choices[0].message.content
        longer = [*first, {"role": "assistant", "content": text}, *messages]
        kept += client.answer(longer, session=session).usage.prompt_tokens_details.cached_tokens > 0
    return kept


def _left(address: str, client: Client, messages: Messages) -> Result:
    """Leaves a long answer, and looks how long its replica goes on with it."""
    session = "left"

    def number(name: str) -> float:
        page = httpx.get(f"{address}/metrics", headers={"x-session-id": session}, timeout=60).text
        line = next(each for each in page.splitlines() if each.startswith(f"treesnake_{name} "))
        return float(line.split()[-1])

    before = number("generation_tokens_total")
    client.leave(messages, session=session, num_tokens=LONG)
    has_ended = comes_true(lambda: number("num_requests_running") == 0)
    made = number("generation_tokens_total") - before
    return {"has_ended": has_ended, "tokens": int(made), "tokens_asked_for": LONG}


def _killed(
    ray: Any, address: str, client: Client, asked: list[Messages], num_tokens: int
) -> Result:
    """Kills a replica while requests run: what comes of them, and whether it is replaced."""

    def status(messages: Messages) -> str:
        body = {"model": client.model, "messages": messages, "max_tokens": num_tokens}
        url = f"{address}/v1/chat/completions"
        return str(httpx.post(url, json=body, timeout=120).status_code)

    def outcome(messages: Messages) -> str:
        return "answer" if client.text(messages) else "nothing"

    return {
        "statuses_under_a_kill": _under_a_kill(ray, status, asked),
        "outcomes_with_retries_under_a_kill": _under_a_kill(ray, outcome, asked),
        "replicas_afterwards": len(_replicas(ray)),
    }


def _under_a_kill(
    ray: Any, ask: Callable[[Messages], str], asked: list[Messages]
) -> dict[str, int]:
    comes_true(lambda: len(_replicas(ray)) == NUM_REPLICAS)
    victim = _replicas(ray)[0]
    with ThreadPoolExecutor(2 * NUM_REPLICAS) as pool:
        running = [pool.submit(ask, each) for each in asked]
        comes_true(lambda: any(each.done() for each in running))
        ray.kill(ray.get_actor(victim["name"], namespace=victim["namespace"]))
        outcomes = Counter(_outcome(each.result) for each in running)
    comes_true(lambda: len(_replicas(ray)) == NUM_REPLICAS)
    return dict(sorted(outcomes.items()))


def _outcome(result: Callable[[], str]) -> str:
    try:
        return result()
    except Exception as error:  # noqa: BLE001 - what a client gets is what is looked at
        return type(error).__name__


def _replicas(ray: Any) -> list[dict[str, str]]:
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [each for each in actors if each["name"].startswith("SERVE_REPLICA::")]
