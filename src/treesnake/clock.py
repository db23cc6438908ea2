"""Clocks that tell a thread's own work from the time that it waits for other threads.

Several texts may share an engine that runs one pass at a time. A thread that waits for its turn
does not work, and how long it waits says nothing of what its own pass costs.
"""

import threading
from time import perf_counter


class _Waits(threading.local):
    """The account of each thread."""

    seconds = 0.0


_waits = _Waits()


def waited_s() -> float:
    """Returns the seconds that this thread has waited for its turn so far."""
    return _waits.seconds


def work_clock() -> float:
    """Returns the time in seconds on a clock that stands still while this thread waits.

    Like `perf_counter`, it means something only as a difference, within one thread.
    """
    return perf_counter() - _waits.seconds


def book_wait(since: float) -> None:
    """Books the time since `since`, a reading of `perf_counter`, as waited by this thread.

    Call it first thing inside a lock that threads queue for:

        asked = perf_counter()
        with lock:
            book_wait(asked)

    The lock stays a plain one, because only those cannot be left locked by an interrupt.
    """
    _waits.seconds += perf_counter() - since
