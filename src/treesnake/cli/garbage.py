"""When Python looks for garbage: not while a command imports, nor among what was imported.

Imports make a million objects and next to no garbage. Looking through them again and again takes
half a second of the start, and as much of the end.
"""

import gc


def put_off_collection() -> None:
    """Looks for no garbage from here on."""
    gc.disable()


def collect_again() -> None:
    """Looks for garbage among what is made from here on; what is there stays to the end."""
    gc.freeze()
    gc.enable()
