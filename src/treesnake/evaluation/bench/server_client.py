"""A client of any server with OpenAI's API, which tells when each answer began and ended."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from treesnake.errors import InvalidInputError, ServerError

TIMEOUT_S = 600
"""How long a server may say nothing: a long prompt may wait behind others."""

MOST_SHOWN = 300
"""Characters of a refusal that are shown."""

DATA, DONE = b"data:", b"[DONE]"
"""How an event begins, and what the last one says."""

WRITTEN = ("content", "reasoning_content", "tool_calls")
"""The fields of a chunk that hold what a model wrote."""


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is.

    Attributes:
        name: what it is called in tables.
        url: without `/v1`.
        model: which of its models is asked; None is the first that it lists.
    """

    name: str
    url: str
    model: str | None = None

    @classmethod
    def parse(cls, text: str) -> "ServerAddress":
        """Reads `[NAME=]URL[#MODEL]`.

        Raises:
            InvalidInputError: if it is not that.
        """
        before, equals, behind = text.partition("=")
        is_named = bool(equals) and "://" not in before
        try:
            parts = urlsplit(behind if is_named else text)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
            _ = parts.port
        except ValueError:
            parts, is_address = urlsplit(""), False
        if not is_address:
            raise InvalidInputError(
                f"{text!r:.200} is no address of a server: write http://HOST:PORT, with NAME= in "
                "front to name it, and with #MODEL behind it to choose a model"
            )
        path = parts.path.rstrip("/").removesuffix("/v1")
        host = parts.netloc.rpartition("@")[2]
        name = before if is_named else host
        return cls(name, f"{parts.scheme}://{host}{path}", parts.fragment or None)


@dataclass(frozen=True)
class TimedAnswer:
    """An answer that came as a stream.

    Attributes:
        num_tokens: tokens of the answer.
        is_counted: whether the server counted them. Otherwise each chunk with text counts as one.
        first_s: seconds from the request to the first text.
        total_s: seconds from the request to the end.
        num_prompt_tokens: tokens of the prompt; 0 where the server does not tell.
        num_cached_tokens: those of them that it had kept from earlier requests.
        text: of the answer.
    """

    num_tokens: int
    is_counted: bool
    first_s: float
    total_s: float
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    text: str = ""

    @property
    def token_s(self) -> float | None:
        """Seconds of each token behind the first text; None if there are none."""
        rest = self.num_tokens - 1
        return (self.total_s - self.first_s) / rest if rest > 0 else None


class ServerClient:
    """Asks one server; each request has a connection of its own, so threads may share a client.

    Args:
        address: where the server is.
        api_key: the key that it asks for.
    """

    def __init__(self, address: ServerAddress, api_key: str | None = None) -> None:
        self.address = address
        self._parts = urlsplit(address.url)
        self._headers = {"content-type": "application/json", "accept": "*/*"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"

    def chosen_model(self) -> str:
        """Returns the model that the address names, or else the first that the server lists.

        Raises:
            ServerError: if it cannot be reached, or lists none.
        """
        if self.address.model is not None:
            return self.address.model
        with self._asked("GET", "/v1/models") as response:
            listed = self._parsed(response.read())
        models = listed.get("data") or [{}]
        name = models[0].get("id") if isinstance(models[0], Mapping) else None
        if not isinstance(name, str):
            raise ServerError(
                f"{self.address.name} lists no model; name one: {self.address.url}#MODEL"
            )
        return name

    def answer(
        self, model: str, messages: Sequence[Mapping[str, Any]], max_tokens: int
    ) -> TimedAnswer:
        """Asks for the answer to a conversation, greedily, and reads it as it comes.

        Raises:
            ServerError: if the server cannot be reached, or refuses the request.
        """
        body = {
            "model": model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started = perf_counter()
        with self._asked("POST", "/v1/chat/completions", json.dumps(body).encode()) as response:
            return self._timed(response, started)

    @contextmanager
    def _asked(self, method: str, path: str, body: bytes | None = None) -> Iterator[HTTPResponse]:
        is_safe = self._parts.scheme == "https"
        kind = HTTPSConnection if is_safe else HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, self._parts.path + path, body, self._headers)
            response = connection.getresponse()
            if response.status != 200:
                told = response.read().decode(errors="replace")[:MOST_SHOWN]
                raise ServerError(
                    f"{self.address.name} answered {method} {path} with status {response.status}: "
                    f"{told}"
                )
            yield response
        except (OSError, HTTPException) as error:
            raise ServerError(
                f"{self.address.name} cannot be reached at {self.address.url}: "
                f"{error or type(error).__name__}; start it, or correct its address"
            ) from error
        finally:
            connection.close()

    def _timed(self, lines: Iterable[bytes], started: float) -> TimedAnswer:
        usage: Mapping[str, Any] = {}
        first_s: float | None = None
        num_chunks, text = 0, ""
        for event in self._events(lines):
            if event.get("error"):
                raise ServerError(
                    f"{self.address.name} broke off: {str(event['error'])[:MOST_SHOWN]}"
                )
            usage = event.get("usage") or usage
            choices = event.get("choices") or ()
            text += "".join(map(_content, choices))
            if any(map(_has_text, choices)):
                num_chunks += 1
                if first_s is None:
                    first_s = perf_counter() - started
        total_s = perf_counter() - started
        num_tokens = usage.get("completion_tokens")
        details = usage.get("prompt_tokens_details") or {}
        return TimedAnswer(
            num_tokens=num_chunks if num_tokens is None else num_tokens,
            is_counted=num_tokens is not None,
            first_s=total_s if first_s is None else first_s,
            total_s=total_s,
            num_prompt_tokens=usage.get("prompt_tokens") or 0,
            num_cached_tokens=details.get("cached_tokens") or 0,
            text=text,
        )

    def _events(self, lines: Iterable[bytes]) -> Iterator[Mapping[str, Any]]:
        """Yields the objects of an event stream."""
        for line in lines:
            data = line.removeprefix(DATA).strip()
            if not line.startswith(DATA) or not data:
                continue
            if data == DONE:
                return
            yield self._parsed(data)

    def _parsed(self, data: bytes) -> Mapping[str, Any]:
        try:
            parsed = json.loads(data)
        except ValueError:
            parsed = None
        if not isinstance(parsed, Mapping):
            raise ServerError(
                f"{self.address.name} answers with something else than OpenAI's API has: "
                f"{data[:MOST_SHOWN]!r}"
            )
        return parsed


def _content(choice: Mapping[str, Any]) -> str:
    return (choice.get("delta") or {}).get("content") or ""


def _has_text(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return any(delta.get(name) for name in WRITTEN)
