"""Slots of storage that many texts share."""

from itertools import count
from weakref import WeakKeyDictionary


class Slots:
    """The numbers of slots, handed out lowest first.

    The slot of a text that nobody holds any more is free again. Only one thread at a time may use
    this; a text may be forgotten in any thread.
    """

    def __init__(self) -> None:
        self._taken: WeakKeyDictionary[object, int] = WeakKeyDictionary()

    def lowest_free(self) -> int:
        """Returns the lowest number that no text has."""
        taken = set(self._taken.values())
        return next(number for number in count() if number not in taken)

    def take(self, slot: int, holder: object) -> None:
        """Notes that a text has a slot, as long as there is a reference to its holder."""
        self._taken[holder] = slot
