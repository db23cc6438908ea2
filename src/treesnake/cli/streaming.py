"""Shows a text while it is made."""

import signal

from treesnake.decoder import TextStream
from treesnake.outcome import Generation
from treesnake.terminal import write


def run_stream(stream: TextStream, *, is_shown: bool = True) -> Generation:
    """Runs a stream to its end and prints it as it comes.

    Ctrl-C ends it after the step under way, and nothing is lost; a second one interrupts the step.
    """
    before = signal.getsignal(signal.SIGINT)

    def cancel(*_: object) -> None:
        stream.cancel()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, cancel)
    try:
        for piece in stream:
            if is_shown:
                write(piece)
    finally:
        signal.signal(signal.SIGINT, before)
        if is_shown:
            print(flush=True)
    return stream.generation
