"""What does the second turn of a chat cost a server, on targets of three kinds?

    uv run python benchmarks/served_turns.py --threads 2 --output results/served_turns.json

`treesnake serve` runs each target twice: as it is, where it keeps the sessions of texts that have
ended, and with --cache-bytes 0. A chat with a long first message is answered, and a short
second message follows. Reported are tokens of its prompt, those that ran again, and the seconds to
the first text: kept, not kept, and of a fresh chat of the second message alone. Each round has a
chat of its own; medians are reported.
"""

import statistics
import sys
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack

from frame import Result, add_rounds, print_table, run
from server_process import free_port, started

from treesnake.conversation import Message, user_message
from treesnake.evaluation.bench.server_client import ServerClient

TARGETS = {
    "smollm2 (attention)": "smollm2",
    "smollm2-hybrid (both)": "smollm2-hybrid",
    "treesnake-smol (Mamba-2)": "src/treesnake/drafters/shipped/treesnake-smol",
}
SENTENCE = "Entry {}: boat number {} came in with {} crates of fish and left again at {} o'clock. "
QUESTION = "Thank you. How many crates did the last boat bring?"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--entries", type=int, default=40, help="lines of the first message")
    parser.add_argument("--tokens", type=int, default=16, help="of the first answer")
    add_rounds(parser, 5)


def measure(arguments: Namespace) -> Result:
    return {
        "entries": arguments.entries,
        "rounds": arguments.rounds,
        "targets": {name: _measure_target(path, arguments) for name, path in TARGETS.items()},
    }


def show(result: Result) -> None:
    print_table(
        "The second turn of a chat",
        ["", "prompt", "run again", "first text, s", "nothing kept", "new tokens alone"],
        [
            [name, str(row["prompt"]), str(row["run_again"]),
             *(f"{row[kind]:.3f}" for kind in ("kept_s", "not_kept_s", "alone_s"))]
            for name, row in result["targets"].items()
        ],
    )  # fmt: skip


def _measure_target(target: str, arguments: Namespace) -> Result:
    serve = [sys.executable, "-m", "treesnake", "serve", target]
    serve += ["--threads", str(arguments.threads), "--served-model-name", target]
    with ExitStack() as running:
        clients = []
        for name, options in {"kept": [], "not kept": ["--cache-bytes", "0"]}.items():
            port = free_port()
            command = [*serve, "--port", str(port), *options]
            clients.append(running.enter_context(started(name, command, port, target)))
        rows = [_second_turn(*clients, number, arguments) for number in range(arguments.rounds)]
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _second_turn(
    keeping: ServerClient, forgetting: ServerClient, number: int, arguments: Namespace
) -> Result:
    entries = [
        SENTENCE.format(entry, 7 * number + entry, 3 * entry + number, entry % 24)
        for entry in range(arguments.entries)
    ]
    chat: list[Message] = [user_message("".join(entries) + "Is this a harbour?")]
    first = keeping.answer(_model(keeping), chat, arguments.tokens)
    chat += [{"role": "assistant", "content": first.text}, user_message(QUESTION)]
    kept = keeping.answer(_model(keeping), chat, arguments.tokens)
    not_kept = forgetting.answer(_model(forgetting), chat, arguments.tokens)
    alone = forgetting.answer(_model(forgetting), chat[2:], arguments.tokens)
    assert kept.text == not_kept.text, "what is kept decides about time alone"
    return {
        "prompt": kept.num_prompt_tokens,
        "run_again": kept.num_prompt_tokens - kept.num_cached_tokens,
        "kept_s": kept.first_s,
        "not_kept_s": not_kept.first_s,
        "alone_s": alone.first_s,
    }


def _model(client: ServerClient) -> str:
    return client.address.model or ""


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
