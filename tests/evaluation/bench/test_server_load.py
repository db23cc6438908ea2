"""Servers under load: what is asked, what is counted, and what is told of servers that fail."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from treesnake.errors import InvalidInputError, ServerError
from treesnake.evaluation.bench.server_client import ServerAddress, ServerClient, TimedAnswer
from treesnake.evaluation.bench.server_load import (
    LoadMeasures,
    ServerLoad,
    Spread,
    load_as_json,
    load_table,
    run_load,
    write_load,
)

ASKED = [{"role": "user", "content": "?"}]
QUESTIONS = [f"question {number}" for number in range(9)]


def chunk(text: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [] if text is None else [{"delta": {"content": text}}]} | fields


class Answering(BaseHTTPRequestHandler):
    """A server of somebody else, in few lines."""

    events: tuple[Any, ...] = ()
    status = 200
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": "theirs"}, {"id": "another"}]}).encode())

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        body = json.loads(self.rfile.read(length))
        type(self).asked.append(body | {"key": self.headers["authorization"]})
        self._send(b"".join(b"data: %s\n\n" % json.dumps(each).encode() for each in self.events))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass

    def _send(self, body: bytes) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(body)


Start = Callable[..., str]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers that answer with some events; each gives its address."""
    running = []

    def started(*events: Any, status: int = 200, asked: list[Any] | None = None) -> str:
        fields = {"events": events, "status": status, "asked": [] if asked is None else asked}
        handler = type("Handler", (Answering,), fields)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield started
    for server in running:
        server.shutdown()
        server.server_close()


def client_of(address: str, **options: Any) -> ServerClient:
    return ServerClient(ServerAddress.parse(address), **options)


USAGE = {
    "completion_tokens": 5,
    "prompt_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 3},
}


def test_tokens_are_those_that_the_server_counts(start: Start) -> None:
    client = client_of(start(chunk(""), chunk("a b"), chunk("c"), chunk(usage=USAGE)))
    answer = client.answer("theirs", ASKED, 8)
    assert (answer.num_tokens, answer.is_counted, answer.text) == (5, True, "a bc")
    assert (answer.num_prompt_tokens, answer.num_cached_tokens) == (7, 3)
    assert 0 < answer.first_s <= answer.total_s


def test_few_clients_ask_more_so_that_there_are_enough_answers(start: Start) -> None:
    client = client_of(start(chunk("a"), chunk(usage=USAGE)))
    load = ServerLoad((1, 2, 4), per_client=1, max_tokens=8, least_answers=3)
    measures = run_load([client], QUESTIONS, load)
    assert [each.num_answers for each in measures] == [3, 4, 4]


def test_without_usage_each_chunk_with_text_is_a_token(start: Start) -> None:
    client = client_of(start(chunk(""), chunk("a"), chunk("b"), chunk(usage=None)))
    answer = client.answer("theirs", ASKED, 8)
    assert (answer.num_tokens, answer.is_counted) == (2, False)
    empty = client_of(start(chunk(""))).answer("theirs", ASKED, 8)
    assert empty.num_tokens == 0
    assert empty.token_s is None


def test_all_servers_get_all_questions_and_none_gets_one_twice(start: Start) -> None:
    addresses = [f"{name}={start(chunk('a'), chunk(usage=USAGE))}" for name in ("one", "two")]
    seen: list[str] = []
    clients = [client_of(address, api_key="secret") for address in addresses]
    load = ServerLoad((1, 2), per_client=3, max_tokens=8)
    measures = run_load(clients, QUESTIONS, load, lambda done, of, what: seen.append(what))
    assert seen == ["one, 1 at once", "two, 1 at once", "one, 2 at once", "two, 2 at once"]
    assert [(each.server, each.num_clients, each.num_answers) for each in measures] == [
        ("one", 1, 3), ("one", 2, 6), ("two", 1, 3), ("two", 2, 6),
    ]  # fmt: skip
    assert {each.num_tokens / each.num_answers for each in measures} == {5}
    assert all(each.tokens_per_s > 0 and each.first_s and each.token_s for each in measures)


def test_questions_go_round_behind_one_that_warms_up(start: Start) -> None:
    asked: list[dict[str, Any]] = []
    client = client_of(start(chunk("a"), asked=asked), api_key="secret")
    run_load([client], QUESTIONS[:2], ServerLoad((2,), per_client=2, max_tokens=8))
    questions = [body["messages"][0]["content"] for body in asked]
    assert questions[0] not in QUESTIONS, "its prompt would be kept"
    assert sorted(questions[1:]) == sorted(QUESTIONS[:2] * 2)
    assert [body["max_tokens"] for body in asked] == [4, 8, 8, 8, 8]
    assert {(body["model"], body["temperature"], body["key"]) for body in asked} == {
        ("theirs", 0, "Bearer secret")
    }


@pytest.mark.parametrize(
    ("events", "status", "reason"),
    [
        ([chunk("a"), {"error": {"message": "no memory"}}], 200, "no memory"),
        ([5], 200, "something else"),
        ([], 503, "status 503"),
    ],
)
def test_a_server_that_fails_is_told_by_name(
    start: Start, events: list[Any], status: int, reason: str
) -> None:
    client = client_of(f"theirs={start(*events, status=status)}#m")
    with pytest.raises(ServerError, match="theirs") as told:
        client.answer("m", ASKED, 8)
    assert reason in str(told.value)


def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(ServerError, match=r"cannot be reached at http://127\.0\.0\.1:1:"):
        client_of("http://127.0.0.1:1").chosen_model()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://a:1", ServerAddress("a:1", "http://a:1")),
        ("http://a:1/v1/", ServerAddress("a:1", "http://a:1")),
        ("x=https://a/b/v1#o/m", ServerAddress("x", "https://a/b", "o/m")),
        ("http://user:word@a:1", ServerAddress("a:1", "http://a:1")),
    ],
)
def test_an_address_may_have_a_name_and_a_model(text: str, address: ServerAddress) -> None:
    assert ServerAddress.parse(text) == address


@pytest.mark.parametrize("text", ["", "a", "x=", "ftp://a", "http://", "http://a:b", "http://[a"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="no address"):
        ServerAddress.parse(text)


def test_two_servers_need_two_names(start: Start) -> None:
    clients = [client_of("a=http://b"), client_of("a=http://c")]
    with pytest.raises(InvalidInputError, match="different names"):
        run_load(clients, QUESTIONS, ServerLoad())
    with pytest.raises(InvalidInputError, match="needs questions"):
        run_load(clients[:1], [], ServerLoad())


@pytest.mark.parametrize("changed", [{"num_clients": (0,)}, {"per_client": 0}, {"repeats": 0}])
def test_a_load_of_nothing_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="at least 1"):
        ServerLoad(**changed)


def test_a_spread_is_the_middle_and_the_slow_end() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 3.0)
    assert Spread.of([float(number) for number in range(1, 101)]) == Spread(50.0, 95.0)
    assert Spread.of([]) is None


def test_a_table_compares_with_one_client(tmp_path: Path) -> None:
    answers = [TimedAnswer(11, is_counted=False, first_s=1.0, total_s=2.0)] * 2
    measures = [
        LoadMeasures.of("a|b", 1, answers, seconds=4.0),
        LoadMeasures.of("a|b", 2, answers, seconds=2.0),
    ]
    result = load_as_json(ServerLoad((1, 2)), measures)
    assert load_table(result["servers"]).splitlines()[2:] == [
        r"| a\|b (chunks) | 1 | 5.5 | 1.00 | 5.5 | 1.00 | 1.00 | 100.0 | 100.0 |",
        r"| a\|b (chunks) | 2 | 11.0 | 2.00 | 5.5 | 1.00 | 1.00 | 100.0 | 100.0 |",
    ]
    write_load(tmp_path / "servers.json", result)
    assert json.loads((tmp_path / "servers.json").read_text())["load"]["num_clients"] == [1, 2]
    assert load_table(result["servers"]) in (tmp_path / "servers.md").read_text()
