"""`treesnake bench --server`: servers with OpenAI's API, compared on the same questions."""

from collections.abc import Mapping, Sequence
from inspect import Parameter
from pathlib import Path

from treesnake.environment import describe_environment
from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.server_client import ServerAddress, ServerClient
from treesnake.evaluation.bench.server_load import (
    ServerLoad,
    load_as_json,
    load_table,
    run_load,
    write_load,
)
from treesnake.evaluation.tasks import load_questions
from treesnake.outputs import check_output
from treesnake.terminal import console, counted_progress, page

FOR_MODELS = (
    "recipe", "target", "drafter", "dtype", "device", "engine", "threads", "trust_remote_code",
    "method", "temperature", "assisted_by", "cold", "warm",
)  # fmt: skip
"""Options of `bench` that say nothing to a server, which has its model and settings already."""

FOR_SERVERS = ("clients", "per_client")


def check_options(
    given: Mapping[str, object], defaults: Mapping[str, Parameter], *, has_servers: bool
) -> None:
    """Checks that no option is given that would have no effect.

    Args:
        given: the values of all options.
        defaults: the parameters of the command.
        has_servers: whether servers are to be measured.

    Raises:
        InvalidInputError: naming the option.
    """
    for name in FOR_MODELS if has_servers else FOR_SERVERS:
        if given[name] != defaults[name].default:
            option = name.upper() if name == "recipe" else f"--{name.replace('_', '-')}"
            raise InvalidInputError(
                f"{option} has no effect on servers: start them with what they shall run"
                if has_servers
                else f"{option} is for servers; name one with --server"
            )


def bench_servers(
    servers: Sequence[str],
    tasks: Sequence[str],
    load: ServerLoad,
    *,
    data: Path,
    per_category: int | None,
    api_key: str | None,
    output: Path,
) -> None:
    """Measures servers, prints a table and writes it.

    Raises:
        InvalidInputError: if there is no task, or an address is none.
        ServerError: if a server cannot be reached, or refuses a request.
    """
    if not tasks:
        raise InvalidInputError(
            "servers need something to answer: name questions with --task, such as mt-bench or a "
            "JSONL file"
        )
    clients = [ServerClient(ServerAddress.parse(each), api_key) for each in servers]
    for path in (output, output.with_suffix(".md")):
        check_output(path)
    questions = [
        question.turns[0]
        for task in tasks
        for question in load_questions(_found(task, data), per_category=per_category)
    ]
    before = describe_environment()
    errors = console(is_error=True)
    with counted_progress(errors) as progress:
        measures = run_load(clients, questions, load, progress)
    environment = {"before": before, "after": describe_environment()}
    measured = load_as_json(load, measures)
    result = {"environment": environment, "tasks": list(tasks), **measured}
    write_load(output, result)
    console().print(page(load_table(measured["servers"])))
    errors.print(
        f"Written to {output} and {output.with_suffix('.md')}", style="dim", soft_wrap=True
    )


def _found(task: str, data: Path) -> str:
    path = data / task
    return str(path) if path.is_file() else task
