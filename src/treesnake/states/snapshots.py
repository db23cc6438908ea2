"""Ways back to a text that a state held: rows for attention, a copy for recurrences."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from treesnake.errors import InvalidInputError
from treesnake.prompt import Key, Prompt, num_shared

MOST_KEPT = 6
"""Snapshots that one state keeps: the ends of the last prompts and answers, and borders in them."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a state needs to come back to a text, at a cost of its own memory.

    Attributes:
        network: whose state took it; no other can use it.
        key: the text, place by place; see `Prompt.key`.
        tensors: copies, in an order that the state knows.
    """

    network: object
    key: tuple[Key, ...]
    tensors: tuple[Shaped[Tensor, "..."], ...]

    def check_network(self, network: object) -> None:
        """Checks that a state of a network can use it.

        Raises:
            InvalidInputError: if a state of another network took it.
        """
        if self.network is not network:
            raise InvalidInputError(
                "a state of another network took this snapshot; run the text as a prompt instead"
            )

    @property
    def num_bytes(self) -> int:
        """What it takes in memory, without the key."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def begins(self, prompt: Prompt) -> bool:
        """Tells whether its text is the beginning of a prompt without its last token."""
        length = len(self.key)
        return length < len(prompt) and num_shared(self.key, prompt.key) == length


class KeptSnapshots:
    """The snapshots of a state that cannot be cut back; the one unused for longest goes first."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._by_key: dict[tuple[Key, ...], Snapshot] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def has(self, key: Sequence[Key]) -> bool:
        """Tells whether there is one of this text."""
        return tuple(key) in self._by_key

    def keep(self, snapshot: Snapshot) -> None:
        """Keeps a snapshot as the one used last."""
        self._by_key.pop(snapshot.key, None)
        self._by_key[snapshot.key] = snapshot
        while len(self._by_key) > self._most:
            del self._by_key[next(iter(self._by_key))]

    def longest(self, prompt: Prompt, most_tokens: int | None = None) -> Snapshot | None:
        """Returns the one with the longest text that a prompt begins with, if there is one.

        Args:
            prompt: what is to be run.
            most_tokens: the number of tokens that its text may have; None for any.
        """
        fitting = [
            each
            for each in self._by_key.values()
            if each.begins(prompt) and (most_tokens is None or len(each.key) <= most_tokens)
        ]
        if not fitting:
            return None
        found = max(fitting, key=lambda each: len(each.key))
        self.keep(found)
        return found
