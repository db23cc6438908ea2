"""Keys and values of one text, with the rows of a scored tree behind those of the text.

The cache is one of transformers' own kind, so that unmodified models write into it. Rows lie in
storage with room to grow: a token costs no copy of the rows before it, and taking a path of a tree
into the text moves that path's rows and no others.

All rows are kept, those of layers with a sliding window too: what a window hides may come back
into view when a text is rolled back. Windows are the business of masks.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer

ROWS_PER_BLOCK = 256
"""Storage grows to a multiple of this many rows."""


class KvLayer(CacheLayerMixin):
    """The rows of one attention layer and one text, or of several texts of one length.

    `keys` and `values` are views of the rows in use, `[batch, heads, rows, head_dim]`; the storage
    behind them grows by a quarter of what it must hold, so that each row is copied a few times at
    most, however long the text becomes.
    """

    is_croppable = True
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self._num_rows = 0

    def lazy_initialization(
        self,
        key_states: Float[Tensor, "batch heads new key_dim"],
        value_states: Float[Tensor, "batch heads new value_dim"],
    ) -> None:
        """Learns the number of heads, their widths, dtype and device."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._key_storage = key_states[:, :, :0].clone()
        self._value_storage = value_states[:, :, :0].clone()
        self.is_initialized = True

    def update(
        self,
        key_states: Float[Tensor, "batch heads new key_dim"],
        value_states: Float[Tensor, "batch heads new value_dim"],
        *args: object,
        **kwargs: object,
    ) -> tuple[
        Float[Tensor, "batch heads rows key_dim"], Float[Tensor, "batch heads rows value_dim"]
    ]:
        """Appends rows and returns all rows in use; further arguments are for other caches."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._num_rows, self._num_rows + key_states.shape[2]
        self._reserve(end)
        self._key_storage[:, :, start:end] = key_states
        self._value_storage[:, :, start:end] = value_states
        return self._show(end)

    def keep(self, num_rows: int, rows: Int[Tensor, " kept"] | None = None) -> None:
        """Drops all but the first `num_rows` rows, and `rows`, which follow them in that order."""
        if not self.is_initialized:
            return
        end = num_rows
        if rows is not None:
            end += len(rows)
            for storage in (self._key_storage, self._value_storage):
                storage[:, :, num_rows:end] = storage.index_select(2, rows)
        self._show(end)

    def crop(self, tokens_to_remove: int) -> None:
        """Drops the last rows; their number is given below zero, as transformers does."""
        if tokens_to_remove > 0:
            raise ValueError(f"give the rows to drop as a negative number, not {tokens_to_remove}")
        self.keep(max(self._num_rows + tokens_to_remove, 0))

    def reset(self) -> None:
        """Drops all rows."""
        self.keep(0)

    def get_seq_length(self) -> int:
        """Returns the number of rows in use."""
        return self._num_rows

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns how many rows a mask for new tokens must cover, and the first one's position."""
        return self._num_rows + query_length, 0

    def get_max_length(self) -> int:
        """Returns -1: the cache grows as it must."""
        return -1

    def batch_select_indices(self, indices: Int[Tensor, " kept"]) -> None:
        """Keeps the rows of these texts of a batch."""
        if self.is_initialized:
            self._key_storage = self._key_storage[indices]
            self._value_storage = self._value_storage[indices]
            self._show(self._num_rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refuses: the cache holds one text."""
        raise NotImplementedError("a cache of one text has no beams")

    def _show(
        self, num_rows: int
    ) -> tuple[
        Float[Tensor, "batch heads rows key_dim"], Float[Tensor, "batch heads rows value_dim"]
    ]:
        self._num_rows = num_rows
        keys = self.keys = self._key_storage[:, :, :num_rows]
        values = self.values = self._value_storage[:, :, :num_rows]
        return keys, values

    def _reserve(self, num_rows: int) -> None:
        if num_rows > self._key_storage.shape[2]:
            blocks = -(-(num_rows + num_rows // 4) // ROWS_PER_BLOCK)
            capacity = blocks * ROWS_PER_BLOCK
            self._key_storage = _extended(self._key_storage, self._num_rows, capacity)
            self._value_storage = _extended(self._value_storage, self._num_rows, capacity)


class KvCache(Cache):
    """The rows of all layers: those of the text first, then those of a tree that was scored on it.

    Args:
        has_rows: for each layer of the model whether it keeps rows; the others have no attention,
            or look at the rows of another layer.
    """

    def __init__(self, has_rows: Sequence[bool]) -> None:
        super().__init__(layers=[KvLayer() if has else DummyLayer() for has in has_rows])

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
        for layer in self.layers:
            if not isinstance(layer, KvLayer) or not layer.is_initialized:
                continue
            if moved and layer.device not in rows_on:
                rows_on[layer.device] = torch.tensor(moved, device=layer.device)
            layer.keep(num_rows, rows_on.get(layer.device))


def _extended(
    storage: Shaped[Tensor, "batch heads rows width"], num_used: int, capacity: int
) -> Shaped[Tensor, "batch heads capacity width"]:
    batch, heads, _, width = storage.shape
    extended = storage.new_empty(batch, heads, capacity, width)
    extended[:, :, :num_used] = storage[:, :, :num_used]
    return extended
