"""Cache layers that models of transformers are given for layers with a recurrent state.

They hold nothing. They tell the running pass which layer is about to convolve or has run its
recurrence, and never admit to an earlier state, so that mixers take the way of many tokens, where
the dispatch is.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from treesnake.models.hf_dispatch import running_pass
from treesnake.states.rowless_layer import RowlessLayer

RowsLayer = CacheLayerMixin | RowlessLayer


class MixerLayer(LinearAttentionCacheLayerMixin):
    """A layer with convolutions, recurrences or both.

    Args:
        number: the layer's.
        num_convolutions: how many it has.
    """

    def __init__(self, number: int, num_convolutions: int) -> None:
        super().__init__(num_convolutions)
        self._number = number

    def lazy_initialization(self, *args: object, **kwargs: object) -> None:
        """Prepares nothing: memories are prepared by the pass."""

    def update_conv_state(
        self, conv_states: Float[Tensor, "texts channels new"], state_idx: int = 0, **kwargs: object
    ) -> Float[Tensor, "texts channels new"]:
        """Announces a convolution; returns its new inputs alone, the pass has those before."""
        running_pass().enter(self._number, state_idx)
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: object
    ) -> Tensor:
        """Notes that the recurrence was run; the state is not for the cache."""
        running_pass().leave(self._number)
        return recurrent_states


class MixerAndRowsLayer(MixerLayer, CacheLayerMixin):
    """A layer that has attention beside its recurrence.

    Args:
        number: the layer's.
        num_convolutions: how many it has.
        rows: the layer of its keys and values.
    """

    is_croppable = False
    is_compileable = False

    def __init__(self, number: int, num_convolutions: int, rows: CacheLayerMixin) -> None:
        CacheLayerMixin.__init__(self)
        MixerLayer.__init__(self, number, num_convolutions)
        self._rows = rows

    def update(
        self,
        key_states: Float[Tensor, "texts heads new key_dim"],
        value_states: Float[Tensor, "texts heads new value_dim"],
        *args: object,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Appends keys and values and returns all."""
        return self._rows.update(key_states, value_states)

    def get_seq_length(self) -> int:
        """Returns the number of rows in use."""
        return self._rows.get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns how many rows a mask for new tokens must cover, and the first one's position."""
        return self._rows.get_mask_sizes(query_length)


def mixer_cache(rows: Sequence[RowsLayer], num_convolutions: Sequence[int]) -> Cache:
    """Returns the cache for a model with recurrent layers.

    Args:
        rows: the layers of keys and values; a dummy where there are none.
        num_convolutions: those of each layer; 0 if it has no recurrent state.
    """
    return Cache(
        layers=[
            _layer(number, *each)
            for number, each in enumerate(zip(rows, num_convolutions, strict=True))
        ]
    )


def _layer(number: int, rows: RowsLayer, num_convolutions: int) -> RowsLayer | MixerLayer:
    if not num_convolutions:
        return rows
    if isinstance(rows, RowlessLayer):
        return MixerLayer(number, num_convolutions)
    return MixerAndRowsLayer(number, num_convolutions, rows)
