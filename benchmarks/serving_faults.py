"""Do clients that go away, and clients that send nonsense, leave anything behind in a server?

    uv run python benchmarks/serving_faults.py --threads 2 --output results/serving_faults.json

`treesnake serve` runs in a process of its own, with the drafter that comes with the target, and
keeps no sessions, since what those take is meant to grow. `--count` requests are given up, in the
middle of a body or of an answer; then as many cannot be right. A good client beside them asks the
same again and again, one request at a time. Before, there are as many others beside it that ask
for the same number of tokens and wait for them. Memory, threads and open descriptors of the server
are read from /proc while nobody asks, so this needs Linux.
"""

import json
import re
import socket
import statistics
import struct
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

import httpx
from frame import Result, print_table, run

PROMPT, NUM_TOKENS = "One, two, three, four, one, two, three,", 16
NUM_ALONE = 20
"""Requests of the good client before and after the bad ones."""

NUM_WAITED = 10
"""Requests of each client beside it that waits for its answers."""

NUM_WARM = 40
"""Bad requests of each kind before memory is read, so that threads and pools are there."""

SETTLE_S = 3
TIMEOUT_S = 60
GONE = struct.pack("ii", 1, 0)
"""For SO_LINGER: a close resets the connection."""

Address = tuple[str, int]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MALFORMED: Sequence[tuple[str, str, bytes]] = (
    ("POST", TEXT, b""),
    ("POST", TEXT, b"{"),
    ("POST", TEXT, b"\xff\xfe"),
    ("POST", TEXT, b"[" * 50_000),
    ("POST", TEXT, b'{"prompt": [-1]}'),
    ("POST", TEXT, b'{"prompt": "a", "n": 0}'),
    ("POST", TEXT, b'{"prompt": "a", "colour": "red"}'),
    ("POST", TEXT, b'{"prompt": "a", "temperature": NaN}'),
    ("POST", TEXT, b'{"prompt": "a", "guided_regex": "("}'),
    ("POST", TEXT, b'{"prompt": "a", "model": "another"}'),
    ("POST", CHAT, b'{"messages": [5]}'),
    ("POST", CHAT, b'{"messages": [{"role": "user", "content": "a"}], "stream": "perhaps"}'),
    ("POST", "/v1/nothing", b"{}"),
    ("DELETE", CHAT, b""),
    ("NO METHOD", "/ /", b"\0" * 100),
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--count", type=int, default=1000, help="bad requests of each kind")
    parser.add_argument("--clients", type=int, default=4, help="bad clients at once")


def measure(arguments: Namespace) -> Result:
    """Lets one kind of bad client in after the other."""
    with _server(arguments.target, arguments.threads) as (process, address):
        abort, malform = partial(_abort, address), partial(_malform, address)
        footprints = {"started": _footprint(process)}
        for bad in (abort, malform):
            _all(bad, min(NUM_WARM, arguments.count), arguments.clients)
        good = {"alone": _good_client(address, num=NUM_ALONE)}
        footprints["warm"] = _footprint(process)
        with _beside(address) as times:
            _all(partial(_wait, address), NUM_WAITED * arguments.clients, arguments.clients)
        good["beside clients that wait"] = times
        answers = {}
        for name, bad in {"aborted": abort, "malformed": malform}.items():
            with _beside(address) as times:
                answers[name] = dict(_all(bad, arguments.count, arguments.clients))
            good[f"beside {name}"] = times
            footprints[f"after {name}"] = _footprint(process)
        good["alone after all"] = _good_client(address, num=NUM_ALONE)
    return {
        "target": arguments.target,
        "count": arguments.count,
        "clients": arguments.clients,
        "footprints": footprints,
        "answers": answers,
        "good_client": {name: _summary(times) for name, times in good.items()},
        "texts_of_good_client": len({text for times in good.values() for _, text in times}),
    }


def show(result: Result) -> None:
    print_table(
        f"The server, {result['count']} bad requests of each kind",
        ["", "MiB", "threads", "descriptors"],
        [
            [name, f"{at['rss_mib']:.1f}", str(at["threads"]), str(at["descriptors"])]
            for name, at in result["footprints"].items()
        ],
    )
    print_table(
        "The good client, seconds a request",
        ["", "requests", "median", "p95"],
        [
            [name, str(row["requests"]), f"{row['median_s']:.2f}", f"{row['p95_s']:.2f}"]
            for name, row in result["good_client"].items()
        ],
    )
    print(result["answers"], f"{result['texts_of_good_client']} different good answers")


@contextmanager
def _server(target: str, threads: int) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    command = [sys.executable, "-m", "treesnake", "serve", target, "--port", "0", "--memory", "off"]
    command += ["--cache-bytes", "0", "--threads", str(threads)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            address = _address(process)
            Thread(target=process.stderr.read, daemon=True).start()  # or a full pipe stops it
            yield process, address
        finally:
            process.kill()


def _address(process: subprocess.Popen[str]) -> Address:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://[\d.]+:\d+", line):
            parts = urlsplit(found[0])
            assert parts.hostname
            assert parts.port
            return parts.hostname, parts.port
    raise RuntimeError("the server ended before it told its address")


def _footprint(process: subprocess.Popen[str]) -> dict[str, float]:
    """Reads what the server holds, once it has come to rest."""
    time.sleep(SETTLE_S)
    folder = Path("/proc") / str(process.pid)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {
        "rss_mib": round(int(status["VmRSS"].split()[0]) / 1024, 1),
        "threads": int(status["Threads"]),
        "descriptors": len([*(folder / "fd").iterdir()]),
    }


def _all(bad: Callable[[int], str], count: int, clients: int) -> Counter[str]:
    with ThreadPoolExecutor(clients) as pool:
        return Counter(pool.map(bad, range(count)))


Times = list[tuple[float, str]]
"""Seconds and text of each request."""


@contextmanager
def _beside(address: Address) -> Iterator[Times]:
    """Lets the good client ask as long as the context lasts."""
    times: Times = []
    is_over = Event()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(_good_client, address, times, is_over)
        try:
            yield times
        finally:
            is_over.set()
        asking.result()


def _good_client(
    address: Address,
    times: Times | None = None,
    is_over: Event | None = None,
    num: int | None = None,
) -> Times:
    times = [] if times is None else times
    url = f"http://{address[0]}:{address[1]}{TEXT}"
    body = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0}
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
        while not (is_over and is_over.is_set()) and (num is None or len(times) < num):
            started = time.perf_counter()
            answer = client.post(url, json=body).raise_for_status().json()
            times.append((time.perf_counter() - started, answer["choices"][0]["text"]))
    return times


def _summary(times: Times) -> dict[str, Any]:
    seconds = sorted(each for each, _ in times)
    at = max(-(-95 * len(seconds) // 100) - 1, 0)
    return {
        "requests": len(seconds),
        "median_s": round(statistics.median(seconds), 3),
        "p95_s": round(seconds[at], 3),
    }


def _wait(address: Address, number: int) -> str:
    """Asks for a whole answer and waits for it."""
    with socket.create_connection(address, TIMEOUT_S) as connection:
        connection.sendall(_asking(number, NUM_TOKENS, is_stream=False))
        while connection.recv(4096):
            pass
    return "waited"


def _asking(number: int, num_tokens: int, *, is_stream: bool) -> bytes:
    """Returns a request with a prompt of its own."""
    asked = {"prompt": f"{number}. {PROMPT}", "max_tokens": num_tokens, "ignore_eos": True}
    return _request("POST", TEXT, json.dumps(asked | {"stream": is_stream}).encode())


def _abort(address: Address, number: int) -> str:
    """Gives a request up in one of four ways and tells which."""
    way = ("in the body", "in a stream", "without a word", "by a reset")[number % 4]
    request = _asking(number, 2000, is_stream=number % 2 == 1)
    with socket.create_connection(address, TIMEOUT_S) as connection:
        if way == "in the body":
            connection.sendall(request[:-20])
            return way
        connection.sendall(request)
        if way == "without a word":
            time.sleep(0.05)
            return way
        connection.recv(4096)
        if way == "by a reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, GONE)
    return way


def _malform(address: Address, number: int) -> str:
    """Sends what cannot be right and returns the status."""
    request = _request(*MALFORMED[number % len(MALFORMED)])
    with socket.create_connection(address, TIMEOUT_S) as connection:
        connection.sendall(request)
        head = connection.recv(4096).split(b"\r\n", 1)[0].split()
    return head[1].decode() if len(head) > 1 else "closed"


def _request(method: str, path: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
