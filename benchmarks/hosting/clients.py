"""What clients of a host do: ask for whole texts and streams, give stop strings, leave early."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from treesnake import SpeculativeDecoder
from treesnake.integrations.model_folders import export_folder
from treesnake.loading.options import DEFAULT_OPTIONS
from treesnake.serving.server import address_of, listen

Messages = list[dict[str, str]]
Result = dict[str, Any]

QUESTIONS = (
    "Explain how a heat pump works.",
    "Write a short story about a lighthouse.",
    "List the steps for planting a tree.",
    "Why is the sky blue?",
    "Write a Python function that reverses a list.",
    "What should I see in Rome in two days?",
    "Summarise how a bill becomes a law.",
    "Compare buses and trams for a small town.",
    "What is photosynthesis?",
    "Give me three tips for better sleep.",
    "Translate 'good morning' into French.",
    "Who wrote Hamlet, and when?",
    "Write a haiku about rain.",
    "How do vaccines work?",
    "Name five rivers in Europe.",
    "What is the capital of Australia?",
    "Describe a bicycle to a child.",
    "How is cheese made?",
    "What causes tides?",
    "Write a polite email that declines an invitation.",
)
STOP = " the"
LONG = 1500
"""Tokens of an answer whose client leaves."""

PATIENCE_S = 60.0
"""How long a host may take to notice what happened to it."""


def conversations(arguments: Namespace) -> list[Messages]:
    """Returns as many conversations of one question as were asked for."""
    return [[{"role": "user", "content": each}] for each in QUESTIONS[: arguments.questions]]


@dataclass(frozen=True)
class Plain:
    """What plain decoding makes of a conversation: its text, and of how many tokens."""

    text: str
    num_tokens: int


Decode = Callable[[Messages, str | None], Plain]


def plain_decoding(target: str, num_tokens: int) -> Decode:
    """Returns treesnake's own plain decoding."""
    decoder = SpeculativeDecoder.from_pretrained(target, "none")

    def decode(messages: Messages, stop: str | None = None) -> Plain:
        made = decoder.generate(
            messages, max_new_tokens=num_tokens, stop=None if stop is None else [stop]
        )
        return Plain(made.text, len(made.token_ids))

    return decode


class Client:
    """A client of OpenAI's API, which asks for greedy answers.

    Args:
        address: of the host.
        model: as the host calls it.
        num_tokens: of an answer, at most.
        max_retries: how often a request is sent again that got an error.
    """

    def __init__(self, address: str, model: str, num_tokens: int, max_retries: int = 5) -> None:
        import openai  # noqa: PLC0415 - only where a host serves clients

        self._openai = openai.OpenAI(
            base_url=f"{address}/v1", api_key="none", max_retries=max_retries, timeout=300
        )
        self.model = model
        self._asked = {"model": model, "max_tokens": num_tokens, "temperature": 0}

    def answer(self, messages: Messages, *, session: str | None = None, **others: Any) -> Any:
        """Returns an answer, or a stream of its chunks."""
        headers = {} if session is None else {"x-session-id": session}
        options: dict[str, Any] = self._asked | {"messages": messages} | others
        return self._openai.chat.completions.create(extra_headers=headers, **options)

    def text(self, messages: Messages, stop: str | None = None) -> str:
        """Returns the text of a whole answer."""
        others = {} if stop is None else {"stop": [stop]}
        return self.answer(messages, **others).choices[0].message.content

    def pieces(self, messages: Messages) -> list[str]:
        """Returns the pieces of an answer that comes as a stream."""
        chunks = self.answer(messages, stream=True)
        pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
        return [piece for piece in pieces if piece]

    def leave(self, messages: Messages, *, session: str | None, num_tokens: int) -> None:
        """Asks for a long answer as a stream, and leaves with its first piece."""
        chunks = self.answer(messages, session=session, stream=True, max_tokens=num_tokens)
        for chunk in chunks:
            if chunk.choices and chunk.choices[0].delta.content:
                break
        chunks.close()


def compared(client: Client, asked: list[Messages], decode: Decode) -> Result:
    """Returns how many answers are those of plain decoding, and into how many chunks they came."""
    counts = {"whole_equal": 0, "stream_equal": 0, "stop_equal": 0}
    num_tokens = num_chunks = 0
    for messages in asked:
        plain = decode(messages, None)
        counts["whole_equal"] += client.text(messages) == plain.text
        pieces = client.pieces(messages)
        counts["stream_equal"] += "".join(pieces) == plain.text
        counts["stop_equal"] += client.text(messages, STOP) == decode(messages, STOP).text
        num_tokens += plain.num_tokens
        num_chunks += len(pieces)
    return {"questions": len(asked), **counts, "tokens": num_tokens, "chunks": num_chunks}


@contextmanager
def exported(target: str) -> Iterator[str]:
    """Yields a folder of transformers with a target and code that speculates."""
    with TemporaryDirectory(prefix="treesnake-") as folder:
        out = Path(folder) / "model"
        export_folder(target, out, options=DEFAULT_OPTIONS)
        yield str(out)


def free_address(ports: Iterable[int] = (0,)) -> str:
    """Returns an address of this machine that nobody listens at.

    Args:
        ports: those that may be taken, in this order; 0 is any.
    """
    for port in ports:
        try:
            listener = listen("127.0.0.1", port)
        except OSError:
            continue
        with listener:
            return address_of(listener)
    raise OSError(f"somebody listens at each of the ports {list(ports)}")


def port_of(address: str) -> int:
    """Returns the port of an address."""
    return int(address.rsplit(":", 1)[1])


def comes_true(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
    """Waits until something is so, for some time at most."""
    end = time.monotonic() + within_s
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.2)
    return met
