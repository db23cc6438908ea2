"""Keys and values of one sequence in arrays of fixed size."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Shaped
from torch import Tensor

from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.threads import on_one_thread


class TransformerCache:
    """The state of one sequence: `length` committed tokens, then the nodes of the last tree.

    Row r < length of each layer and head belongs to the token at position r, row length + t to node
    t. One more row than the capacity is there for nodes that only fill up a batch. Memory for rows
    that were never written is reserved, not used.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, num_kv_heads, capacity + 1, head_dim)
        self.keys: Shaped[Tensor, "layers kv_heads rows head_dim"]
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values: Shaped[Tensor, "layers kv_heads rows head_dim"]
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        """The number of committed tokens and nodes that fit."""
        return self.keys.shape[2] - 1

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
            rows = torch.tensor(path, device=self.keys.device) + start
            self.keys[:, :, start:end] = self.keys[:, :, rows]
            self.values[:, :, start:end] = self.values[:, :, rows]
        self.length = end

    def reserve(self, capacity: int) -> None:
        """Makes room for so many tokens and nodes; a cache that is too small moves, as it is."""
        if capacity <= self.capacity:
            return
        layers, heads, _, head_dim = self.keys.shape
        for name in ("keys", "values"):
            rows = getattr(self, name)
            moved = rows.new_zeros(layers, heads, capacity + 1, head_dim)
            moved[:, :, : self.capacity] = rows[:, :, : self.capacity]
            setattr(self, name, moved)

    def rewind(self, length: int) -> None:
        """Forgets every token from position `length` on."""
        if not 0 <= length <= self.length:
            raise InvalidInputError(f"cannot rewind {self.length} tokens to {length}")
        self.length = length
