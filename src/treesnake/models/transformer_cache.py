"""Keys and values of many texts in two arrays: a text has a slot of its own."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Shaped
from torch import Tensor

from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.states.slots import Bank
from treesnake.threads import on_one_thread
from treesnake.transfers import sent


class KvBank(Bank):
    """The keys and values of many texts: each has a slot, each token and node a row of the slot.

    One more row is there for nodes that only fill up a batch. Memory for rows that were never
    written is reserved, not used.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        shape = (num_layers, 0, num_kv_heads, 1, head_dim)
        self.keys: Shaped[Tensor, "layers slots kv_heads rows head_dim"]
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values: Shaped[Tensor, "layers slots kv_heads rows head_dim"]
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def num_slots(self) -> int:
        """The number of slots, free ones included; a power of two, or 0 before the first text."""
        return self.keys.shape[1]

    @property
    def num_rows(self) -> int:
        """The number of committed tokens and nodes that fit into each slot."""
        return self.keys.shape[3] - 1

    def new_cache(self, capacity: int) -> "TransformerCache":
        """Returns an empty slot for so many tokens and nodes."""
        with self.lock:
            self.reserve(capacity)
            slot = self._empty_slot()
            cache = TransformerCache(self, slot)
            self._slots.take(slot, cache)
        return cache

    @torch.inference_mode(mode=False)
    def _move(self, num_slots: int, num_rows: int) -> None:
        layers, slots, heads, rows, head_dim = self.keys.shape
        moved: list[Tensor] = []
        for old in (self.keys, self.values):
            larger = old.new_zeros(layers, num_slots, heads, num_rows + 1, head_dim)
            larger[:, :slots, :, : rows - 1] = old[:, :slots, :, : rows - 1]
            moved.append(larger)
        self.generation += 1
        # Keys last, for they say how much room there is: an interrupt before must not promise any.
        self.values = moved[1]
        self.keys = moved[0]

    def _clear(self, slot: int) -> None:
        self.keys[:, slot].zero_()
        self.values[:, slot].zero_()


class TransformerCache:
    """The state of one sequence: `length` committed tokens, then the nodes of the last tree.

    Row r < length of each layer and head belongs to the token at position r, row length + t to node
    t.

    Attributes:
        bank: what the slot is one of.
        slot: its number there.
    """

    def __init__(self, bank: KvBank, slot: int) -> None:
        self.bank = bank
        self.slot = slot
        self.length = 0

    @property
    def keys(self) -> Shaped[Tensor, "layers kv_heads rows head_dim"]:
        """The keys, until the bank moves."""
        return self.bank.keys[:, self.slot]

    @property
    def values(self) -> Shaped[Tensor, "layers kv_heads rows head_dim"]:
        """The values, until the bank moves."""
        return self.bank.values[:, self.slot]

    @property
    def capacity(self) -> int:
        """The number of committed tokens and nodes that fit."""
        return self.bank.num_rows

    @property
    def num_bytes(self) -> int:
        """The bytes of the committed tokens' keys and values."""
        return 2 * self.keys.nbytes // (self.capacity + 1) * self.length

    def check_room(self, num_nodes: int) -> None:
        """Checks that a tree of so many nodes fits behind the committed tokens.

        Raises:
            ContextLengthError: if it does not.
        """
        if self.length + num_nodes > self.capacity:
            raise ContextLengthError(
                f"{self.length} tokens and {num_nodes} more do not fit into a cache of "
                f"{self.capacity}; make a cache of larger capacity or a shorter prompt"
            )

    @on_one_thread
    def commit(self, path: Sequence[int]) -> None:
        """Keeps the nodes of a path as the next tokens, and forgets the others.

        Raises:
            InvalidInputError: if the path is not ascending.
        """
        if any(node >= child for node, child in pairwise(path)):
            raise InvalidInputError(f"a path goes from nodes to later ones, got {list(path)}")
        start, end = self.length, self.length + len(path)
        if list(path) != list(range(len(path))):
            with self.bank.lock:
                keys, values = self.keys, self.values
                rows = sent([start + node for node in path], keys.device)
                keys[:, :, start:end] = keys[:, :, rows]
                values[:, :, start:end] = values[:, :, rows]
        self.length = end

    @on_one_thread
    def copy(self) -> tuple[Shaped[Tensor, "..."], Shaped[Tensor, "..."]]:
        """Returns copies of the committed tokens' keys and values, for `restore`."""
        rows = slice(self.length)
        with self.bank.lock:
            return self.keys[:, :, rows].clone(), self.values[:, :, rows].clone()

    @on_one_thread
    def restore(self, copied: Sequence[Shaped[Tensor, "..."]]) -> None:
        """Makes the committed tokens those whose `copy` this is."""
        keys, values = copied
        length = keys.shape[2]
        self.length = 0
        self.reserve(length)
        with self.bank.lock:
            self.keys[:, :, :length] = keys
            self.values[:, :, :length] = values
        self.length = length

    def reserve(self, capacity: int) -> None:
        """Makes room for so many tokens and nodes; the whole bank grows if they do not fit."""
        self.bank.reserve(capacity)

    def rewind(self, length: int) -> None:
        """Forgets every token from position `length` on."""
        if not 0 <= length <= self.length:
            raise InvalidInputError(f"cannot rewind {self.length} tokens to {length}")
        self.length = length
