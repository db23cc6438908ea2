"""The keys and values of one text in a pass that is captured once and replayed.

A replay reads and writes where the captured pass did, so rows are written by numbers that are read
from the device, and the number of rows that are read is that of the size of the pass.
"""

from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from treesnake.states.kv import KvCache, KvLayer
from treesnake.states.rowless_layer import RowlessLayer


class CapturedKvLayer(CacheLayerMixin):
    """One attention layer of the text, for one pass."""

    is_croppable = False
    is_sliding = False

    def __init__(self, text: KvLayer, rows: Int[Tensor, " new"], num_read: int) -> None:
        super().__init__()
        self._text = text
        self._rows = rows
        self._num_read = num_read
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Needs nothing: the text has rows already."""

    def update(
        self,
        key_states: Float[Tensor, "1 heads new key_dim"],
        value_states: Float[Tensor, "1 heads new value_dim"],
        *args: object,
        **kwargs: object,
    ) -> tuple[Float[Tensor, "1 heads read key_dim"], Float[Tensor, "1 heads read value_dim"]]:
        """Writes the rows of the nodes and returns all that may be seen."""
        self._text.write(self._rows, key_states, value_states)
        return self._text.first(self._num_read)

    def get_seq_length(self) -> int:
        """Returns the number of rows that are read: how many are in use is not known here."""
        return self._num_read

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns how many rows a mask must cover, and the first one's position."""
        return self._num_read, 0

    def get_max_length(self) -> int:
        """Returns -1, as all caches of ours do."""
        return -1


class CapturedKvCache(Cache):
    """The cache of one text as that of a captured pass.

    Args:
        cache: of the text, with room for the rows; some rows must have been written before.
        rows: where those of the new nodes are written.
        num_read: how many are read.
    """

    def __init__(self, cache: KvCache, rows: Int[Tensor, " new"], num_read: int) -> None:
        super().__init__(
            layers=[
                CapturedKvLayer(layer, rows, num_read)
                if isinstance(layer, KvLayer)
                else RowlessLayer()
                for layer in cache.layers
            ]
        )
