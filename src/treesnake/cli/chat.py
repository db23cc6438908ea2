"""`treesnake chat`: a conversation in the terminal."""

import sys
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

import treesnake
from treesnake.cli import options
from treesnake.conversation import Message, user_message
from treesnake.errors import ContextLengthError, InvalidInputError, TreesnakeError
from treesnake.images import read_image
from treesnake.loading.options import LoadOptions
from treesnake.terminal import console

RESET, IMAGE = "/reset", "/image"


def chat(
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
    learn: options.Learn = None,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = None,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
) -> None:
    """Hold a conversation.

    Ctrl-C stops an answer, /image FILE shows a picture with what is said next, /reset forgets what
    was said, Ctrl-D ends.
    """
    from treesnake.cli.target_options import open_decoder

    params = treesnake.SamplingParams(temperature, top_k, top_p, min_p, seed)
    decoder = open_decoder(
        target,
        drafter,
        LoadOptions(dtype, device, engine, trust_remote_code=trust_remote_code),
        search=search,
        captions=captions,
        threads=threads,
        memory=memory,
        learn=learn,
    )
    if not decoder.has_chat_template:
        raise InvalidInputError(
            f"{target} has no chat template; use an instruct model, or treesnake generate --raw"
        )
    _converse(decoder, params, max_new_tokens)


@dataclass
class _Said:
    """What was said so far, and the pictures that the next question is about."""

    messages: list[Message] = field(default_factory=list)
    images: list[object] = field(default_factory=list)


def _converse(
    decoder: "treesnake.SpeculativeDecoder",
    params: "treesnake.SamplingParams",
    max_new_tokens: int,
) -> None:
    from treesnake.cli.statistics import Comparison, print_statistics
    from treesnake.cli.streaming import run_stream

    notes = console(is_error=True)
    shows = "" if decoder.images is None else f"{IMAGE} FILE shows a picture, "
    notes.print(f"Ctrl-C stops an answer, {shows}{RESET} starts anew, Ctrl-D ends.", style="dim")
    session = decoder.new_session()
    said = _Said()
    while (line := _ask(notes)) is not None:
        if line.startswith("/"):
            said = _obeyed(line, said, decoder, notes)
            continue
        asked: list[Message] = [*said.messages, user_message(line, said.images)]
        said.images = []
        try:
            stream = decoder.stream(asked, params, max_new_tokens=max_new_tokens, session=session)
        except ContextLengthError:
            notes.print(f"The conversation fills the context; {RESET} starts anew.", style="red")
            continue
        except TreesnakeError as error:
            notes.print(f"{error}", style="red")
            continue
        generation = run_stream(stream)
        print_statistics(Comparison(generation))
        said.messages = [*asked, {"role": "assistant", "content": generation.text}]


def _obeyed(
    line: str, said: _Said, decoder: "treesnake.SpeculativeDecoder", notes: Console
) -> _Said:
    """Does what a line that begins with a slash says; returns what counts as said from then on."""
    command, _, name = line.partition(" ")
    if line == RESET:
        notes.print("A new conversation.", style="dim")
        return _Said()
    if decoder.images is None:
        notes.print(f"The only command is {RESET}.", style="dim")
        return said
    if command != IMAGE or not name.strip():
        notes.print(f"The commands are {IMAGE} FILE and {RESET}.", style="dim")
        return said
    try:
        image = read_image(name.strip(), "the picture")
    except TreesnakeError as error:
        notes.print(f"{error}", style="red")
        return said
    width, height = image.size
    notes.print(f"A picture of {width} x {height} pixels; now ask about it.", style="dim")
    return _Said(said.messages, [*said.images, image])


def _ask(notes: Console) -> str | None:
    """Returns the next line that is not empty, or None at the end.

    Raises:
        InvalidInputError: if standard input is no text.
    """
    while True:
        try:
            line = notes.input(Text("> " if sys.stdin.isatty() else "", style="bold")).strip()
        except KeyboardInterrupt:
            notes.print()
            continue
        except EOFError:
            if sys.stdin.isatty():
                notes.print()  # what comes next begins on a line of its own
            return None
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"standard input is no text in UTF-8: {error}") from error
        if line:
            return line
