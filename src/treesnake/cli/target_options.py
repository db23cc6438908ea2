"""From the options of a command to a decoder."""

from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub.utils
import torch
import transformers
from numba.core import event
from rich.control import Control
from rich.segment import ControlType

from treesnake.arguments import as_num_threads
from treesnake.cli.garbage import collect_again
from treesnake.cli.options import on_or_folder
from treesnake.decoder import SpeculativeDecoder
from treesnake.loading.options import LoadOptions
from treesnake.terminal import console


def open_decoder(
    target: str,
    drafter: str,
    options: LoadOptions,
    *,
    search: str,
    captions: str | None,
    threads: int | None,
    memory: str | None = None,
    learn: str | None = None,
) -> SpeculativeDecoder:
    """Loads what a command needs; the options are checked before anything is loaded."""
    set_threads(threads)
    with loading(target):
        return SpeculativeDecoder.load(
            target,
            drafter,
            options,
            search=search,
            captions=captions,
            memory=on_or_folder(memory),
            learn=on_or_folder(learn),
        )


def set_threads(threads: int | None) -> None:
    """Lets torch compute on so many threads; None leaves that to torch."""
    if threads is not None:
        torch.set_num_threads(as_num_threads(threads))


@contextmanager
def loading(target: str) -> Iterator[None]:
    """Shows in a terminal that a model is being loaded, and leaves no trace of it.

    Downloads keep the progress bars of the hub; other libraries are told to be quiet.
    """
    collect_again()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()
    event.register("numba:compile", _CompilationNotice())
    notes = console(is_error=True)
    if not notes.is_terminal:
        yield
        return
    notes.print(f"Loading {target} ...", style="dim", end="\r", no_wrap=True, overflow="crop")
    try:
        yield
    finally:
        notes.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))


class _CompilationNotice(event.Listener):
    """Says once why nothing happens for a while; kernels that are on disk already are silent."""

    def __init__(self) -> None:
        self._is_given = False

    def on_start(self, event: event.Event) -> None:
        """Takes note of a function that numba begins to compile."""
        if not self._is_given:
            self._is_given = True
            console(is_error=True).print(
                "Compiling kernels for this machine, once; this takes up to half a minute ...",
                style="dim",
            )

    def on_end(self, event: event.Event) -> None:
        """Takes note of a function that was compiled."""
