"""`treesnake verify`: is decoding lossless on this pair, this machine, these settings?"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

import treesnake
from treesnake.cli import options
from treesnake.evaluation.tasks import load_questions
from treesnake.loading.options import LoadOptions
from treesnake.outputs import check_output, write_output
from treesnake.terminal import OutsideColumn, console, progress_bar
from treesnake.terminal import page as page_of

NOT_LOSSLESS = 1
"""The exit status of a verdict against it."""


def verify(
    target: options.Target = "smollm2",
    drafter: options.Drafter = "auto",
    captions: options.Captions = None,
    search: options.Search = "self-tuning",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    threads: options.Threads = None,
    trust_remote_code: options.TrustRemoteCode = False,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="A JSONL file or a task of the hub, as in bench."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=0, metavar="N", help="Of greedy texts.")
    ] = 64,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="Of samples; 0 leaves sampling out.")
    ] = 1.0,
    top_k: options.TopK = None,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="Short texts for each of 4 prompts.")
    ] = 300,
    recurrent: Annotated[
        bool,
        typer.Option(
            "--recurrent",
            help="Also come to texts in the ways that corrupt a recurrent state elsewhere.",
        ),
    ] = False,
    alpha: Annotated[
        float, typer.Option(metavar="P", help="How often correct sampling may fail.")
    ] = 0.01,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Sample the same.")] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the evidence as Markdown.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Look for anything that speculation changes.

    The target's logits are compared with those of transformers' own model, greedy texts with plain
    decoding token by token, samples with the target's own probabilities. The exit status is 0 if
    nothing was found and 1 if something was.
    """
    from treesnake.cli.target_options import loading, open_decoder
    from treesnake.environment import describe_environment
    from treesnake.evaluation import verification
    from treesnake.evaluation.verification.page import to_page
    from treesnake.loading.reference import find_reference
    from treesnake.targets.network import NetworkTargetModel

    if page is not None:
        check_output(page)
    sampling = None
    if temperature > 0:
        params = treesnake.SamplingParams(temperature, top_k, top_p, min_p)
        sampling = verification.SamplingPlan(params, num_samples=samples, alpha=alpha, seed=seed)
    questions = load_questions(prompts, per_category=1) if prompts else []
    load_options = LoadOptions(dtype, device, engine, trust_remote_code=trust_remote_code)
    with loading(target):
        reference = find_reference(target, load_options)
    decoder = open_decoder(
        target, drafter, load_options, search=search, captions=captions, threads=threads
    )
    model = decoder.pair.target
    assert isinstance(model, NetworkTargetModel)
    facts = describe_environment()
    subject = {
        "target": target,
        "drafter": drafter,
        "search": search,
        "dtype": dtype,
        "device": device,
        "engine": engine,
        **{name: str(facts[name]) for name in ("processor", "threads", "date", "commit")},
        **{name: number for name, number in facts["versions"].items() if number},
    }
    with _progress(console(is_error=True)) as bar:
        lines: dict[str, int] = {}

        def report(what: str, num_done: int, num_all: int) -> None:
            if what not in lines:
                lines[what] = int(bar.add_task(what, total=num_all))
            bar.update(bar.tasks[lines[what]].id, completed=num_done)

        verdict = verification.verify(
            decoder,
            [question.turns[0] for question in questions] or None,
            verification.VerifyPlan(max_new_tokens, sampling, state=recurrent),
            subject=subject,
            report=report,
            loading=reference.compare(model.network),
        )
    text = to_page(verdict, decoder)
    try:
        if as_json:
            print(json.dumps(verdict.as_json()))
        else:
            console().print(page_of(text))
    finally:
        if page is not None:
            write_output(page, text)
    if not verdict.is_lossless:
        raise typer.Exit(NOT_LOSSLESS)


def _progress(shown_on: Console) -> Progress:
    return progress_bar(
        shown_on,
        OutsideColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
