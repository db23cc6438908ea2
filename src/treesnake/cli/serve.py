"""`treesnake serve`: a server for clients of OpenAI's API."""

from importlib.util import find_spec
from pathlib import PurePath
from typing import Annotated

import typer

from treesnake.cli import options
from treesnake.errors import InvalidInputError, LoadError
from treesnake.loading.options import LoadOptions
from treesnake.terminal import console, plain

NEEDED = ("prometheus_client", "pydantic", "starlette", "uvicorn")
"""What the extra brings."""


def serve(
    target: Annotated[
        str,
        typer.Argument(metavar="[TARGET]", help="At the hub, a folder, a GGUF file, or smollm2."),
    ] = "smollm2",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    threads: options.Threads = None,
    trust_remote_code: options.TrustRemoteCode = False,
    drafter: options.Drafter = "auto",
    captions: options.Captions = None,
    search: options.Search = "self-tuning",
    memory: options.Memory = None,
    learn: options.Learn = None,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Where to listen; 0.0.0.0 for other machines, too.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="0 takes a free one.")
    ] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", envvar="TREESNAKE_API_KEY", help="Ask for it; may be given again."
        ),
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Texts that run at once; others wait.")
    ] = 8,
    max_queued: Annotated[
        int, typer.Option(min=0, metavar="N", help="Texts that wait at most; more get a 503.")
    ] = 64,
    max_model_len: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Tokens of prompt and answer at most."),
    ] = None,
    cache_bytes: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="What texts that have ended may keep in memory."),
    ] = 512 << 20,
    served_model_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call the model.")
    ] = None,
) -> None:
    """Serve a model to clients of OpenAI's API.

    It has a page to look at, too.
    """
    _check_extra()
    if api_key and not all(key.strip() for key in api_key):
        raise InvalidInputError("an API key is empty; leave --api-key out to let everybody in")
    from treesnake.cli.target_options import open_decoder
    from treesnake.serving.app import Served, create_app
    from treesnake.serving.engine import Engine, EngineLimits
    from treesnake.serving.server import address_of, listen, try_decoding
    from treesnake.serving.server import serve as run

    listener = listen(host, port)
    loaded = open_decoder(
        target,
        drafter,
        LoadOptions(dtype, device, engine, trust_remote_code=trust_remote_code),
        search=search,
        captions=captions,
        threads=threads,
        memory=memory,
        learn=learn,
    )
    name = served_model_name or PurePath(target).name or target
    limits = EngineLimits(max_num_seqs, max_queued, cache_bytes, max_model_len)
    texts = Engine(loaded, limits)
    app = create_app(Served(texts, name, api_key or (), try_decoding(loaded)))
    _tell(name, address_of(listener), has_key=bool(api_key))
    run(app, texts, listener)


def _check_extra() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise LoadError(
            f"a server needs the packages {', '.join(missing)}; install treesnake[serve]"
        )


def _tell(name: str, address: str, *, has_key: bool) -> None:
    """Says what is served, where, and how to ask."""
    key = " -H 'Authorization: Bearer KEY'" if has_key else ""
    message = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    notes = console(is_error=True)
    notes.print(plain(f"Serving {name} at {address}"))
    notes.print(
        plain(f"curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' "
              f"-d '{message}'"),
        soft_wrap=True,
    )  # fmt: skip
