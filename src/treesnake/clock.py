"""Clocks that tell a thread's own work from the time that it waits for other threads.

Several texts may share an engine that runs one pass at a time. A thread that waits for its turn
does not work, and how long it waits says nothing of what its own pass costs. What it costs hangs on
how many texts share the pass, so that is noted, too. Nor is a prompt that is read in the middle of
a step a part of what the step costs.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class _Account(threading.local):
    """The account of each thread."""

    waited_s = 0.0
    read_s = 0.0
    num_sharing = 1


_account = _Account()


def waited_s() -> float:
    """Returns the seconds that this thread has waited for its turn so far."""
    return _account.waited_s


def work_clock() -> float:
    """Returns the time in seconds on a clock that stands still while this thread waits, or reads.

    Like `perf_counter`, it means something only as a difference, within one thread.
    """
    return perf_counter() - _account.waited_s - _account.read_s


def read_s() -> float:
    """Returns the seconds that this thread has spent `reading` so far, without waiting."""
    return _account.read_s


@contextmanager
def reading() -> Iterator[None]:
    """Books what happens inside as reading of a prompt, even if it fails."""
    started = work_clock()
    try:
        yield
    finally:
        _account.read_s += work_clock() - started


def book_wait(since: float) -> None:
    """Books the time since `since`, a reading of `perf_counter`, as waited by this thread.

    Call it first thing inside a lock that threads queue for:

        asked = perf_counter()
        with lock:
            book_wait(asked)

    The lock stays a plain one, because only those cannot be left locked by an interrupt.
    """
    _account.waited_s += perf_counter() - since


def num_sharing() -> int:
    """Returns how many texts shared the last pass of this thread; 1 is its own text alone."""
    return _account.num_sharing


def book_sharing(num_texts: int) -> None:
    """Notes how many texts shared a pass of this thread, its own text included."""
    _account.num_sharing = num_texts
