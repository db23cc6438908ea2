"""`treesnake generate`: one prompt, streamed, with what it took."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import treesnake
from treesnake.cli import options
from treesnake.conversation import user_message
from treesnake.errors import InvalidInputError
from treesnake.images import read_image
from treesnake.json_lines import parse_json
from treesnake.loading.options import LoadOptions
from treesnake.utf8 import decode_text, read_text_file

INTERRUPTED = 130
"""The exit status of what Ctrl-C ended, as shells have it."""


def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The question; - reads standard input.")
    ],
    target: options.Target = "smollm2",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    threads: options.Threads = None,
    trust_remote_code: options.TrustRemoteCode = False,
    drafter: options.Drafter = "auto",
    captions: options.Captions = None,
    search: options.Search = "self-tuning",
    memory: options.Memory = None,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = None,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    image: options.Image = None,
    json_schema: Annotated[
        Path | None,
        typer.Option("--json-schema", metavar="FILE", help="Answer with JSON of this schema."),
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option("--regex", metavar="R", help="Answer with what matches this expression."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without chat template.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Decode plainly as well, and compare.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Colour tokens by who wrote them; draw the last tree.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Answer a prompt and say how fast.

    The text goes to standard output as it is made, the statistics to standard error.
    """
    from treesnake.cli.statistics import (
        Comparison,
        print_explanation,
        print_statistics,
        statistics,
    )
    from treesnake.cli.streaming import run_stream
    from treesnake.cli.target_options import open_decoder

    params = treesnake.SamplingParams(temperature, top_k, top_p, min_p, seed)
    response_format = None if json_schema is None else _format_of(json_schema)
    text = _read_standard_input() if prompt == "-" else prompt
    pictures = [read_image(name, "the picture") for name in image or ()]
    decoder = open_decoder(
        target,
        drafter,
        LoadOptions(dtype, device, engine, trust_remote_code=trust_remote_code),
        search=search,
        captions=captions,
        threads=threads,
        memory=memory,
    )
    uses_template = decoder.has_chat_template and not raw
    asked = [user_message(text, pictures)] if uses_template else text
    if pictures and not uses_template:
        raise InvalidInputError(
            "a picture needs the chat template, which says where it stands; leave out --raw, or "
            "choose an instruct model"
        )

    def stream(session: treesnake.DecoderSession) -> treesnake.TextStream:
        return decoder.stream(
            asked,
            params,
            max_new_tokens=max_new_tokens,
            stop=stop or (),
            response_format=response_format,
            regex=regex,
            session=session,
        )

    if compare:
        warming = decoder.new_session(memory=False)  # the answer must not be known beforehand
        decoder.generate(asked, params, max_new_tokens=8, session=warming)
    generation = run_stream(stream(decoder.new_session()), is_shown=not as_json)
    is_cancelled = generation.finish_reason is treesnake.FinishReason.CANCELLED
    plain = None
    if compare and not is_cancelled:
        session = decoder.new_session(memory=False)
        plain_session = replace(session, search=treesnake.StaticSearch(treesnake.OFF))
        plain = run_stream(stream(plain_session), is_shown=False)
        is_cancelled = plain.finish_reason is treesnake.FinishReason.CANCELLED
    comparison = Comparison(generation, None if is_cancelled else plain)
    if as_json:
        print(json.dumps({"text": generation.text, **statistics(comparison)}))
    else:
        print_statistics(comparison)
    if show:
        print_explanation(decoder.explain(generation))
    if is_cancelled:
        raise typer.Exit(INTERRUPTED)


def _format_of(path: Path) -> Mapping[str, object]:
    """Returns what asks for answers of the schema in a file."""
    schema = parse_json(read_text_file(path), str(path))
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def _read_standard_input() -> str:
    """Returns the whole of it without the newline at the end, which is the shell's and not meant.

    Raises:
        InvalidInputError: if it is no text, or empty.
    """
    text = decode_text(sys.stdin.buffer.read(), "standard input").removesuffix("\n")
    if not text:
        raise InvalidInputError("standard input is empty: pipe the prompt in, or write it out")
    return text
