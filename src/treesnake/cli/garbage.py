"""When Python looks for garbage: not while a command imports, nor among what was imported.

Imports make a million objects and next to no garbage. Looking through them again and again takes
half a second of the start, and as much of the end.
"""

import atexit
import gc
import sys


def put_off_collection() -> None:
    """Looks for no garbage from here on."""
    gc.disable()


def collect_again() -> None:
    """Looks for garbage among what is made from here on; what is there stays to the end."""
    gc.freeze()
    gc.enable()
    atexit.register(_let_go)


def _let_go() -> None:
    """Lets Triton's library find all of its own again, where it is loaded: it reports the rest."""
    if "triton._C.libtriton" in sys.modules:
        gc.unfreeze()
