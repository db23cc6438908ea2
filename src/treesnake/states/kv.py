"""Keys and values of one text, with the rows of a scored tree behind those of the text.

The cache is one of transformers' own kind, so that unmodified models write into it. Rows lie in
storage with room to grow: a token costs no copy of the rows before it, and taking a path of a tree
into the text moves that path's rows and no others.

All rows are kept, those of layers with a sliding window too: what a window hides may come back
into view when a text is rolled back. Windows are the business of masks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from treesnake.states.rowless_layer import RowlessLayer
from treesnake.transfers import sent

ROWS_PER_BLOCK = 256
"""Storage grows to a multiple of this many rows."""


@dataclass(frozen=True, eq=False)
class KvBlock:
    """Storage of one attention layer for texts that run together, a slot for each.

    A slot belongs to one text for as long as the block lives, and the block lives as long as a text
    has its rows there.

    Attributes:
        keys: zeros where nothing was written yet: what is masked must be finite.
        values: likewise.
    """

    keys: Shaped[Tensor, "slots heads capacity key_dim"]
    values: Shaped[Tensor, "slots heads capacity value_dim"]

    @classmethod
    def empty(
        cls,
        num_slots: int,
        num_rows: int,
        key_states: Shaped[Tensor, "_ heads new key_dim"],
        value_states: Shaped[Tensor, "_ heads new value_dim"],
    ) -> "KvBlock":
        """Returns a block with room for so many rows in each slot, and for some more."""
        capacity = _roomy(num_rows)
        (_, heads, _, key_dim), value_dim = key_states.shape, value_states.shape[-1]
        return cls(
            key_states.new_zeros(num_slots, heads, capacity, key_dim),
            value_states.new_zeros(num_slots, heads, capacity, value_dim),
        )

    @property
    def num_slots(self) -> int:
        """The number of texts that have their rows here, or had."""
        return self.keys.shape[0]

    @property
    def capacity(self) -> int:
        """The number of rows that fit into each slot."""
        return self.keys.shape[2]


class KvLayer(CacheLayerMixin):
    """The rows of one attention layer and one text.

    Their storage grows by a quarter of what it must hold, so that each row is copied a few times at
    most, however long the text becomes. It is the text's own or a slot of a `KvBlock`, until the
    text outgrows that. Dropping rows costs nothing: they are no longer counted.

    Attributes:
        block: of which the storage is a slot; None if it is the text's own.
        generation: how often the storage has moved.
    """

    is_croppable = False
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.block: KvBlock | None = None
        self.generation = 0
        self._slot = 0
        self._num_rows = 0

    def lazy_initialization(
        self,
        key_states: Float[Tensor, "1 heads new key_dim"],
        value_states: Float[Tensor, "1 heads new value_dim"],
    ) -> None:
        """Learns the number of heads, their widths, dtype and device."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._key_storage = key_states[:, :, :0].clone()
        self._value_storage = value_states[:, :, :0].clone()
        self.is_initialized = True

    def update(
        self,
        key_states: Float[Tensor, "1 heads new key_dim"],
        value_states: Float[Tensor, "1 heads new value_dim"],
        *args: object,
        **kwargs: object,
    ) -> tuple[Float[Tensor, "1 heads rows key_dim"], Float[Tensor, "1 heads rows value_dim"]]:
        """Appends rows and returns all rows in use; further arguments are for other caches."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._num_rows, self._num_rows + key_states.shape[2]
        self.reserve(end)
        self._key_storage[:, :, start:end] = key_states
        self._value_storage[:, :, start:end] = value_states
        self._num_rows = end
        return self.first(end)

    def keep(self, num_rows: int, rows: Int[Tensor, " kept"] | None = None) -> None:
        """Drops all but the first `num_rows` rows, and `rows`, which follow them in that order."""
        self._num_rows = num_rows
        if rows is not None:
            self._num_rows += len(rows)
            for storage in (self._key_storage, self._value_storage):
                storage[:, :, num_rows : self._num_rows] = storage.index_select(2, rows)

    def count(self, num_rows: int) -> None:
        """Counts so many rows, of which the last were written otherwise than by `update`."""
        self._num_rows = num_rows

    def write(
        self,
        rows: Int[Tensor, " new"],
        key_states: Float[Tensor, "1 heads new key_dim"],
        value_states: Float[Tensor, "1 heads new value_dim"],
    ) -> None:
        """Writes rows for which there is room, whether they are counted or not."""
        self._key_storage.index_copy_(2, rows, key_states)
        self._value_storage.index_copy_(2, rows, value_states)

    def move(self, block: KvBlock, slot: int) -> None:
        """Takes the rows along into a slot of a block, which no other text has had."""
        keys, values = self.first(self._num_rows)
        block.keys[slot : slot + 1, :, : self._num_rows] = keys
        block.values[slot : slot + 1, :, : self._num_rows] = values
        self._key_storage = block.keys[slot : slot + 1]
        self._value_storage = block.values[slot : slot + 1]
        self.block, self._slot = block, slot
        self.generation += 1

    def is_in(self, block: KvBlock, slot: int) -> bool:
        """Tells whether the rows are in this slot."""
        return self.block is block and self._slot == slot

    def first(
        self, num_rows: int
    ) -> tuple[Float[Tensor, "1 heads rows key_dim"], Float[Tensor, "1 heads rows value_dim"]]:
        """Returns views of the first rows."""
        return self._key_storage[:, :, :num_rows], self._value_storage[:, :, :num_rows]

    @property
    def bytes_per_row(self) -> int:
        """What a token takes in memory."""
        if not self.is_initialized:
            return 0
        storages = (self._key_storage, self._value_storage)
        return sum(each.shape[1] * each.shape[3] * each.itemsize for each in storages)

    def get_seq_length(self) -> int:
        """Returns the number of rows in use."""
        return self._num_rows

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns how many rows a mask for new tokens must cover, and the first one's position."""
        return self._num_rows + query_length, 0

    def get_max_length(self) -> int:
        """Returns -1: the cache grows as it must."""
        return -1

    def reserve(self, num_rows: int) -> None:
        """Makes room for so many rows."""
        if num_rows > self._key_storage.shape[2]:
            capacity = _roomy(num_rows)
            keys = _extended(self._key_storage, self._num_rows, capacity)
            values = _extended(self._value_storage, self._num_rows, capacity)
            # Both at once: an interruption must not leave room for one without the other.
            self.block = None
            self._key_storage, self._value_storage = keys, values
            self.generation += 1


class KvCache(Cache):
    """The rows of all layers: those of the text first, then those of a tree that was scored on it.

    Args:
        has_rows: for each layer of the model whether it keeps rows; the others have no attention,
            or look at the rows of another layer.
    """

    def __init__(self, has_rows: Sequence[bool]) -> None:
        super().__init__(layers=[KvLayer() if has else RowlessLayer() for has in has_rows])

    def keep(self, num_rows: int, path: Sequence[int] = ()) -> None:
        """Drops all rows but the first `num_rows` and, counted from there on, those of `path`.

        This commits a path of the tree whose rows come after the first `num_rows`, or without a
        path forgets the tree. It costs a copy of those rows of the path that are not in place
        already; a path goes down the tree, so its nodes increase.
        """
        num_in_place = next((i for i, node in enumerate(path) if node != i), len(path))
        num_rows += num_in_place
        moved = [num_rows - num_in_place + node for node in path[num_in_place:]]
        rows_on: dict[torch.device, Int[Tensor, " kept"]] = {}
        for layer in self._kv_layers():
            if not layer.is_initialized:
                continue
            if moved and layer.device not in rows_on:
                rows_on[layer.device] = sent(moved, layer.device)
            layer.keep(num_rows, rows_on.get(layer.device))

    @property
    def is_ready(self) -> bool:
        """Whether all layers have had rows, so that it is known what these look like."""
        return all(layer.is_initialized for layer in self._kv_layers())

    @property
    def generation(self) -> int:
        """How often the storage of any layer has moved."""
        return sum(layer.generation for layer in self._kv_layers())

    def reserve(self, num_rows: int) -> None:
        """Makes room for so many rows."""
        for layer in self._kv_layers():
            layer.reserve(num_rows)

    def count(self, num_rows: int) -> None:
        """Counts so many rows, of which the last were written by a captured pass."""
        for layer in self._kv_layers():
            layer.count(num_rows)

    def num_bytes(self, num_rows: int) -> int:
        """Returns what so many tokens take in memory; 0 before the first."""
        return num_rows * sum(layer.bytes_per_row for layer in self._kv_layers())

    def copy(self, num_rows: int) -> tuple[Shaped[Tensor, "1 _ rows _"], ...]:
        """Returns copies of the first rows: keys and values of each layer that has them."""
        if num_rows == 0:
            return ()
        return tuple(rows.clone() for layer in self._kv_layers() for rows in layer.first(num_rows))

    def restore(self, copies: Sequence[Shaped[Tensor, "1 _ rows _"]]) -> None:
        """Makes the rows those that `copy` returned, of this or another cache of the model."""
        self.keep(0)
        if copies:
            pairs = zip(copies[::2], copies[1::2], strict=True)
            for layer, (keys, values) in zip(self._kv_layers(), pairs, strict=True):
                layer.update(keys, values)

    def _kv_layers(self) -> Iterator[KvLayer]:
        return (layer for layer in self.layers if isinstance(layer, KvLayer))


def _roomy(num_rows: int) -> int:
    """Returns how many rows to make room for where so many are needed."""
    return -(-(num_rows + num_rows // 4) // ROWS_PER_BLOCK) * ROWS_PER_BLOCK


def _extended(
    storage: Shaped[Tensor, "batch heads rows width"], num_used: int, capacity: int
) -> Shaped[Tensor, "batch heads capacity width"]:
    batch, heads, _, width = storage.shape
    extended = storage.new_empty(batch, heads, capacity, width)
    extended[:, :, :num_used] = storage[:, :, :num_used]
    extended[:, :, num_used:] = 0  # what is masked must be finite
    return extended
