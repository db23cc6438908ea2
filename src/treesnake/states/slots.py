"""Slots of storage that many texts share."""

from abc import ABC, abstractmethod
from itertools import count
from weakref import WeakKeyDictionary

from treesnake.threads import new_reentrant_lock


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


class Bank(ABC):
    """Storage of many texts: each has a slot, and each token or node in it a row of the slot.

    Slots and rows grow by doubling. That moves the tensors, and what has their addresses is out of
    date. Who reads or writes the tensors holds the lock, so that they do not move meanwhile.

    Attributes:
        lock: for passes, growth and commits; the same thread may take it again.
        generation: how often the tensors have moved.
    """

    def __init__(self) -> None:
        self.lock = new_reentrant_lock()
        self.generation = 0
        self._slots = Slots()

    @property
    @abstractmethod
    def num_slots(self) -> int:
        """The number of slots, free ones included; a power of two, or 0 before the first text."""

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """The number of rows that each slot has room for."""

    def reserve(self, num_rows: int) -> None:
        """Makes room for so many rows in every slot."""
        with self.lock:
            if num_rows > self.num_rows:
                self._move(self.num_slots, max(num_rows, 2 * self.num_rows))

    def _empty_slot(self) -> int:
        """Returns the lowest slot that no text has, all zeros; whoever calls this holds the lock.

        What is weighted with zero is summed, too, and zero times no number is no number.
        """
        slot = self._slots.lowest_free()
        if slot == self.num_slots:
            self._move(max(1, 2 * slot), self.num_rows)
        else:
            self._clear(slot)
        return slot

    @abstractmethod
    def _move(self, num_slots: int, num_rows: int) -> None:
        """Moves to more slots or rows, filled with zeros; what is kept stays.

        An interruption must not leave more slots or rows promised than there are.
        """

    @abstractmethod
    def _clear(self, slot: int) -> None:
        """Makes all of a slot zeros."""
