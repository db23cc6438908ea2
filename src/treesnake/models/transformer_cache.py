"""Keys and values of many texts in two arrays: a text has a slot of its own."""

import threading
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Shaped
from torch import Tensor

from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.states.slots import Slots
from treesnake.threads import on_one_thread


class KvPool:
    """Slots for the keys and values of texts, handed out lowest first.

    The slot of a cache that nobody holds any more is free again. One more row than the capacity is
    there for nodes that only fill up a batch. Memory for rows that were never written is reserved,
    not used.

    Slots and rows grow by doubling. That moves the arrays, and what has their addresses is out of
    date. Who reads or writes the arrays holds the lock, so that they do not move meanwhile.

    Attributes:
        lock: for passes, growth and commits; the same thread may take it again.
        generation: how often the arrays have moved.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, 0, num_kv_heads, 1, head_dim)
        self.keys: Shaped[Tensor, "layers slots kv_heads rows head_dim"]
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values: Shaped[Tensor, "layers slots kv_heads rows head_dim"]
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lock = threading.RLock()
        self.generation = 0
        self._slots = Slots()

    @property
    def num_slots(self) -> int:
        """The number of slots, free ones included; a power of two, or 0 before the first text."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """The number of committed tokens and nodes that fit into each slot."""
        return self.keys.shape[3] - 1

    def new_cache(self, capacity: int) -> "TransformerCache":
        """Returns an empty slot for so many tokens and nodes."""
        with self.lock:
            self.reserve(capacity)
            slot = self._slots.lowest_free()
            if slot == self.num_slots:
                self._move(max(1, 2 * slot), self.capacity)
            else:
                # A row with weight zero is mixed in, too, and zero times no number is no number.
                self.keys[:, slot].zero_()
                self.values[:, slot].zero_()
            cache = TransformerCache(self, slot)
            self._slots.take(slot, cache)
        return cache

    def reserve(self, capacity: int) -> None:
        """Makes room for so many tokens and nodes in every slot."""
        with self.lock:
            if capacity > self.capacity:
                self._move(self.num_slots, max(capacity, 2 * self.capacity))

    @torch.inference_mode(mode=False)
    def _move(self, num_slots: int, capacity: int) -> None:
        layers, slots, heads, rows, head_dim = self.keys.shape
        moved: list[Tensor] = []
        for old in (self.keys, self.values):
            larger = old.new_zeros(layers, num_slots, heads, capacity + 1, head_dim)
            larger[:, :slots, :, : rows - 1] = old[:, :slots, :, : rows - 1]
            moved.append(larger)
        self.generation += 1
        # Keys last, for they say how much room there is: an interrupt before must not promise any.
        self.values = moved[1]
        self.keys = moved[0]


class TransformerCache:
    """The state of one sequence: `length` committed tokens, then the nodes of the last tree.

    Row r < length of each layer and head belongs to the token at position r, row length + t to node
    t.

    Attributes:
        pool: what the slot is one of.
        slot: its number there.
    """

    def __init__(self, pool: KvPool, slot: int) -> None:
        self.pool = pool
        self.slot = slot
        self.length = 0

    @property
    def keys(self) -> Shaped[Tensor, "layers kv_heads rows head_dim"]:
        """The keys, until the pool moves."""
        return self.pool.keys[:, self.slot]

    @property
    def values(self) -> Shaped[Tensor, "layers kv_heads rows head_dim"]:
        """The values, until the pool moves."""
        return self.pool.values[:, self.slot]

    @property
    def capacity(self) -> int:
        """The number of committed tokens and nodes that fit."""
        return self.pool.capacity

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
            with self.pool.lock:
                keys, values = self.keys, self.values
                rows = torch.tensor(path, device=keys.device) + start
                keys[:, :, start:end] = keys[:, :, rows]
                values[:, :, start:end] = values[:, :, rows]
        self.length = end

    def reserve(self, capacity: int) -> None:
        """Makes room for so many tokens and nodes; the whole pool grows if they do not fit."""
        self.pool.reserve(capacity)

    def rewind(self, length: int) -> None:
        """Forgets every token from position `length` on."""
        if not 0 <= length <= self.length:
            raise InvalidInputError(f"cannot rewind {self.length} tokens to {length}")
        self.length = length
