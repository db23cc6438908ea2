"""`treesnake generate`: one prompt, streamed, with what it took."""

import json
import signal
import sys
from typing import Annotated

import typer

from treesnake.cli import options
from treesnake.cli.opening import open_decoder
from treesnake.cli.report import Comparison, print_statistics, statistics
from treesnake.decoder import DecoderSession, PromptLike, TextStream
from treesnake.outcome import Generation
from treesnake.sampling import SamplingParams
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF


def generate(
    prompt: Annotated[str, typer.Argument(help="The question; - reads standard input.")],
    target: options.Target = "smollm2",
    drafter: options.Drafter = "prompt-lookup",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    shape: options.Shape = "chain(4)",
    threads: options.Threads = None,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = None,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without chat template.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Decode plainly as well and compare.")
    ] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Answers a prompt, and says how fast and with how many tokens per step."""
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
    text = sys.stdin.read() if prompt == "-" else prompt
    asked: PromptLike = text
    if decoder.has_chat_template and not raw:
        asked = [{"role": "user", "content": text}]

    def stream(session: DecoderSession) -> TextStream:
        return decoder.stream(
            asked, params, max_new_tokens=max_new_tokens, stop=stop or (), session=session
        )

    if compare:
        decoder.generate(asked, params, max_new_tokens=8)  # both sides run warm
    generation = show(stream(decoder.new_session()), silent=as_json)
    plain = None
    if compare and generation.finish_reason != "cancelled":
        session = decoder.new_session()
        plain = stream(DecoderSession(session.target, session.drafter, StaticSearch(OFF))).run()
    comparison = Comparison(generation, plain)
    if as_json:
        print(json.dumps({"text": generation.text, **statistics(comparison)}))
    else:
        print_statistics(comparison)


def show(stream: TextStream, *, silent: bool = False) -> Generation:
    """Prints a stream as it comes; Ctrl-C ends it after the step under way, and nothing is lost."""
    before = signal.signal(signal.SIGINT, lambda *_: stream.cancel())
    try:
        for piece in stream:
            if not silent:
                print(piece, end="", flush=True)
    finally:
        signal.signal(signal.SIGINT, before)
    if not silent:
        print(flush=True)
    return stream.generation
