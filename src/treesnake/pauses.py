"""Long work that is done part by part, and who else may go on between the parts.

Reading a long prompt takes seconds, in which other texts shall go on and whoever wanted this one
may give it up. Whoever reads does not know of others. So it calls `pause` before each part, and
whoever runs several texts says what a pause is. By default it is nothing.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Pauses(threading.local):
    """What a pause is on each thread."""

    take: Callable[[], None] | None = None


_pauses = _Pauses()


def pause() -> None:
    """Lets others go on before the next part of long work.

    It may raise, which ends the work as an interrupt does; call it where that does no harm, and
    without a lock that others need.
    """
    if _pauses.take is not None:
        _pauses.take()


@contextmanager
def pausing(take: Callable[[], None]) -> Iterator[None]:
    """Says what a pause of this thread is, as long as the context lasts."""
    before = _pauses.take
    _pauses.take = take
    try:
        yield
    finally:
        _pauses.take = before
