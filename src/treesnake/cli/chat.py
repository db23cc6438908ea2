"""`treesnake chat`: a conversation in the terminal."""

import sys

from rich.console import Console

from treesnake.cli import options
from treesnake.cli.generate import show
from treesnake.cli.opening import open_decoder
from treesnake.cli.report import Comparison, print_statistics
from treesnake.decoder import Message
from treesnake.errors import InvalidInputError
from treesnake.sampling import SamplingParams


def chat(
    target: options.Target = "smollm2",
    drafter: options.Drafter = "prompt-lookup",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    shape: options.Shape = "chain(4)",
    threads: options.Threads = None,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = None,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Holds a conversation; /reset forgets it, Ctrl-C stops an answer, Ctrl-D ends."""
    params = SamplingParams(temperature, top_k, top_p, min_p, seed)
    decoder = open_decoder(
        target=target,
        drafter=drafter,
        dtype=dtype,
        device=device,
        engine=engine,
        shape=shape,
        threads=threads,
        trust_remote_code=trust_remote_code,
    )
    if not decoder.has_chat_template:
        raise InvalidInputError(
            f"{target} has no chat template; use an instruct model, or treesnake generate --raw"
        )
    session = decoder.new_session()
    messages: list[Message] = []
    while (line := _ask()) is not None:
        if line == "/reset":
            messages = []
            continue
        messages.append({"role": "user", "content": line})
        generation = show(
            decoder.stream(messages, params, max_new_tokens=max_new_tokens, session=session)
        )
        print_statistics(Comparison(generation))
        messages.append({"role": "assistant", "content": generation.text})


def _ask() -> str | None:
    """Returns the next line that is not empty, or None at the end."""
    console = Console(stderr=True)
    while True:
        try:
            line = console.input("[bold]> [/]" if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return None
        if line:
            return line
