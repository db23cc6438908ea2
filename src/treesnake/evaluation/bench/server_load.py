"""Servers under load: several clients at once, each with one request after the other."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from treesnake.arguments import as_count
from treesnake.conversation import user_message
from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.server_client import ServerClient, TimedAnswer
from treesnake.evaluation.markdown import inline, table
from treesnake.outputs import write_output

NUM_CLIENTS = (1, 2, 4, 8)
WARM_UP = (
    "Name an animal, a plant, a planet, a river, a mountain, a town, a colour, a tool, a game and "
    "a day of the week, one of each, in one short line."
)
"""What is asked before anything is measured: a server keeps what it read, and what a template says
before every question must be the smaller part of this."""

WARM_UP_TOKENS = 4

Progress = Callable[[int, int, str], None]
"""Is told the number of this measurement, of how many, and what is measured."""


@dataclass(frozen=True)
class ServerLoad:
    """What servers are asked.

    Attributes:
        num_clients: how many clients ask at once, one measurement after the other.
        per_client: questions of each client at each of them.
        max_tokens: of an answer.
        repeats: how often everything is measured; the answers of all repeats count together.
        least_answers: answers of all clients together at least, each time: few clients ask more.

    Raises:
        InvalidInputError: if a number is below one.
    """

    num_clients: tuple[int, ...] = NUM_CLIENTS
    per_client: int = 3
    max_tokens: int = 128
    repeats: int = 1
    least_answers: int = 1

    def __post_init__(self) -> None:
        numbers = (self.per_client, self.max_tokens, self.repeats, self.least_answers)
        for number in (*self.num_clients, *numbers):
            as_count("a number of a load", number, least=1)

    def asked_by_each(self, num_clients: int) -> int:
        """Returns the questions of each of so many clients."""
        return max(self.per_client, ceil(self.least_answers / num_clients))


@dataclass(frozen=True)
class Spread:
    """The middle of some seconds, and what 95 % of them do not exceed."""

    p50: float
    p95: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread | None":
        """Returns that of some seconds; None of none."""
        if not seconds:
            return None
        return cls(*(sorted(seconds)[ceil(part * len(seconds)) - 1] for part in (0.5, 0.95)))


@dataclass(frozen=True)
class LoadMeasures:
    """What a server did for a number of clients.

    Attributes:
        server: its name.
        num_clients: how many asked at once.
        num_answers: the answers of all of them.
        num_tokens: tokens of the answers.
        num_prompt_tokens: tokens of the prompts.
        num_cached_tokens: those of them that the server had kept.
        is_counted: whether the server counted tokens; otherwise chunks were counted.
        tokens_per_s: tokens of all answers by the time that all of them took together.
        tokens_per_s_each: tokens of an answer by its time, the median of all answers.
        first_s: from a request to the first text.
        token_s: for each token behind the first text.
    """

    server: str
    num_clients: int
    num_answers: int
    num_tokens: int
    num_prompt_tokens: int
    num_cached_tokens: int
    is_counted: bool
    tokens_per_s: float
    tokens_per_s_each: float
    first_s: Spread | None
    token_s: Spread | None

    @classmethod
    def of(
        cls, server: str, num_clients: int, answers: Sequence[TimedAnswer], seconds: float
    ) -> "LoadMeasures":
        """Sums up answers that took so many seconds together."""
        num_tokens = sum(answer.num_tokens for answer in answers)
        rests = [answer.token_s for answer in answers]
        return cls(
            server,
            num_clients,
            num_answers=len(answers),
            num_tokens=num_tokens,
            num_prompt_tokens=sum(answer.num_prompt_tokens for answer in answers),
            num_cached_tokens=sum(answer.num_cached_tokens for answer in answers),
            is_counted=all(answer.is_counted for answer in answers),
            tokens_per_s=num_tokens / seconds,
            tokens_per_s_each=median(answer.num_tokens / answer.total_s for answer in answers),
            first_s=Spread.of([answer.first_s for answer in answers]),
            token_s=Spread.of([rest for rest in rests if rest is not None]),
        )


def run_load(
    clients: Sequence[ServerClient],
    questions: Sequence[str],
    load: ServerLoad,
    progress: Progress | None = None,
) -> list[LoadMeasures]:
    """Measures servers in turn, so that a machine that becomes slower does so for all of them.

    All servers get the same questions. None comes twice as long as there are enough of them, so
    that nothing kept from one helps another.

    Raises:
        InvalidInputError: if two servers have one name, or there is no question.
        ServerError: if a server cannot be reached, or refuses a request.
    """
    names = [client.address.name for client in clients]
    if len({*names}) < len(names) or not questions:
        raise InvalidInputError(
            "a comparison needs questions, and servers of different names (NAME=URL), got "
            f"{len(questions)} questions and {', '.join(names)}"
        )
    models = {client: client.chosen_model() for client in clients}
    for client, model in models.items():
        client.answer(model, [user_message(WARM_UP)], WARM_UP_TOKENS)
    answers: dict[tuple[str, int], list[TimedAnswer]] = {}
    seconds: dict[tuple[str, int], float] = {}
    num_runs = load.repeats * len(load.num_clients) * len(clients)
    num_done = num_asked = 0
    for _ in range(load.repeats):
        for number in load.num_clients:
            per_client = load.asked_by_each(number)
            shares = _shares(questions, num_asked, number, per_client)
            num_asked += number * per_client
            for client, model in models.items():
                num_done += 1
                if progress:
                    progress(num_done, num_runs, f"{client.address.name}, {number} at once")
                started = perf_counter()
                got = _ask_all(client, model, shares, load.max_tokens)
                key = client.address.name, number
                seconds[key] = seconds.get(key, 0.0) + perf_counter() - started
                answers.setdefault(key, []).extend(got)
    return [
        LoadMeasures.of(name, number, answers[name, number], seconds[name, number])
        for name in names
        for number in load.num_clients
    ]


def _shares(
    questions: Sequence[str], first: int, num_clients: int, per_client: int
) -> list[list[str]]:
    """Returns what each client asks, beginning with a question and going round."""
    numbers = range(first, first + num_clients * per_client)
    asked = [questions[number % len(questions)] for number in numbers]
    return [asked[client::num_clients] for client in range(num_clients)]


def _ask_all(
    client: ServerClient, model: str, shares: Sequence[Sequence[str]], max_tokens: int
) -> list[TimedAnswer]:
    def ask(questions: Sequence[str]) -> list[TimedAnswer]:
        return [
            client.answer(model, [user_message(question)], max_tokens) for question in questions
        ]

    with ThreadPoolExecutor(len(shares)) as pool:
        return [answer for part in pool.map(ask, shares) for answer in part]


HEADS = (
    "server",
    "clients",
    "tokens/s",
    "x one client",
    "tokens/s each",
    "first text p50, s",
    "p95, s",
    "a token p50, ms",
    "p95, ms",
)


def load_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table in Markdown.

    Args:
        rows: measures as plain data.
    """
    return table(HEADS, load_cells(rows), number_columns=len(HEADS) - 1)


def load_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the cells of that table, row by row."""
    alone = {row["server"]: row["tokens_per_s"] for row in rows if row["num_clients"] == 1}
    return [_cells(row, alone) for row in rows]


def _cells(row: Mapping[str, Any], alone: Mapping[str, float]) -> list[str]:
    rate, one = row["tokens_per_s"], alone.get(row["server"])
    first, each = row["first_s"], row["token_s"]
    return [
        inline(row["server"]) + ("" if row["is_counted"] else " (chunks)"),
        str(row["num_clients"]),
        f"{rate:.1f}",
        f"{rate / one:.2f}" if one else "",
        f"{row['tokens_per_s_each']:.1f}",
        *([f"{first['p50']:.2f}", f"{first['p95']:.2f}"] if first else ["", ""]),
        *([f"{1e3 * each['p50']:.1f}", f"{1e3 * each['p95']:.1f}"] if each else ["", ""]),
    ]


def load_as_json(load: ServerLoad, measures: Sequence[LoadMeasures]) -> dict[str, Any]:
    """Returns what was asked and what was measured as plain data."""
    return {"load": asdict(load), "servers": [asdict(each) for each in measures]}


def write_load(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result, and its table beside it.

    Raises:
        OutputError: if that cannot be.
    """
    write_output(path, json.dumps(result, indent=1) + "\n")
    page = f"# {inline(path.stem)}\n\n{load_table(result['servers'])}\n"
    write_output(path.with_suffix(".md"), page)
