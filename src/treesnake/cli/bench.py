"""`treesnake bench`: methods compared on the same questions."""

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from treesnake.cli import options
from treesnake.cli.generate import INTERRUPTED
from treesnake.errors import InvalidInputError
from treesnake.terminal import console, counted_progress

if TYPE_CHECKING:
    import treesnake.evaluation.bench.summary

METHODS = ["plain", "transformers", "transformers prompt lookup", "chain(4)"]


def bench(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A TOML file; other options then rest.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="results/NAME.json if left out."),
    ] = None,
    data: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where files are that the recipe names.")
    ] = Path(),
    target: options.Target = "smollm2",
    drafter: options.Drafter = "auto",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    threads: options.Threads = None,
    trust_remote_code: options.TrustRemoteCode = False,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD", help="plain, transformers, a search, DRAFTER@SEARCH, ..."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="A JSONL file, or gsm8k, mt-bench, xsum, humaneval, ..."),
    ] = None,
    per_category: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only N questions of each category.")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(metavar="T", help="0 is greedy; may be given again.")
    ] = None,
    max_new_tokens: options.MaxNewTokens = 128,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Make every run N times.")] = 1,
    assisted_by: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A Transformer for transformers' assisted generation."),
    ] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Draft from earlier answers, too; at first from none.")
    ] = False,
    warm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK",
            help="The same behind answers to these other questions; may be given again.",
        ),
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]URL[#MODEL]",
            help="Measure a server with OpenAI's API instead; may be given again.",
        ),
    ] = None,
    clients: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Clients at once; 1, 2, 4 and 8 if left out."),
    ] = None,
    per_client: Annotated[
        int, typer.Option(min=1, metavar="N", help="Questions of each client.")
    ] = 3,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="TREESNAKE_API_KEY", help="What servers ask for."),
    ] = None,
) -> None:
    """Compare methods on the same questions, in turn.

    Results are written after every answer, and a run that was stopped continues.
    """
    given = locals()
    if cold and warm:
        raise InvalidInputError("a memory begins cold or warm: give --cold or --warm, not both")
    from treesnake.cli.server_bench import bench_servers, check_options
    from treesnake.cli.target_options import loading
    from treesnake.environment import describe_environment
    from treesnake.evaluation.bench import (
        BenchRecipe,
        ResultFiles,
        read_bench_recipe,
        run_recipe,
        write_results,
    )
    from treesnake.evaluation.bench.bench_recipe import PairTable, SamplingTable, TaskTable
    from treesnake.evaluation.bench.server_load import NUM_CLIENTS, ServerLoad

    check_options(given, signature(bench).parameters, has_servers=bool(server))
    if server:
        load = ServerLoad(tuple(clients or NUM_CLIENTS), per_client, max_new_tokens, repeats)
        bench_servers(
            server,
            task or (),
            load,
            data=data,
            per_category=per_category,
            api_key=api_key,
            output=_checked_output(output, "servers"),
        )
        return
    if recipe is not None:
        wanted = read_bench_recipe(recipe)
    else:
        wanted = BenchRecipe(
            name="bench",
            pairs={
                target: PairTable(
                    target, drafter, assisted_by, dtype, device, engine, trust_remote_code
                )
            },
            methods=tuple(method or METHODS),
            tasks=tuple(TaskTable(source, per_category=per_category) for source in task or ()),
            sampling=tuple(SamplingTable(value) for value in temperature or (0.0,)),
            max_new_tokens=max_new_tokens,
            repeats=repeats,
            threads=threads,
            has_memory=cold or bool(warm),
            served=tuple(TaskTable(source, per_category=per_category) for source in warm or ()),
        )
    files = ResultFiles(_checked_output(output, wanted.name))
    files.check()
    errors = console(is_error=True)
    environment = {"before": describe_environment()}
    with loading("models"), counted_progress(errors) as progress:
        try:
            run_recipe(wanted, files.journal, data_folder=data, progress=progress)
        except KeyboardInterrupt:
            errors.print(
                f"Stopped; the same command goes on from {files.journal}",
                style="dim",
                soft_wrap=True,
            )
            raise typer.Exit(INTERRUPTED) from None
    summary = write_results(files, environment | {"after": describe_environment()})
    _print(summary)
    errors.print(
        f"Written to {files.summary}, {files.tables} and {files.journal}",
        style="dim",
        soft_wrap=True,
    )


def _checked_output(output: Path | None, name: str) -> Path:
    """Returns where results go, which is a .json file."""
    path = output or Path("results") / f"{name}.json"
    if path.suffix != ".json":
        raise InvalidInputError(f"the output is a .json file, got {path}")
    return path


def _print(summary: "treesnake.evaluation.bench.summary.Summary") -> None:
    """Prints what matters most; the files hold the rest."""
    from treesnake.evaluation.bench.summary import ALL, interval

    output = console()
    for pair, sampling in dict.fromkeys((row.pair, row.sampling) for row in summary.rows):
        table = Table(title=f"{pair}, {sampling}", box=None, title_justify="left")
        table.add_column("")
        for heading in ("tokens/s", "times as fast", "tokens/step"):
            table.add_column(heading, justify="right")
        for row in summary.rows:
            if (row.pair, row.sampling, row.category) == (pair, sampling, ALL):
                rate = row.measures.tokens_per_s
                table.add_row(
                    row.method,
                    "" if rate is None else f"{rate.value:.1f}",
                    interval(row.measures.speedup),
                    f"{row.measures.tokens_per_step:.2f}",
                )
        output.print(table)
        output.print()
    for failure in summary.failures:
        output.print(f"{failure.method} could not run: {failure.error}")
