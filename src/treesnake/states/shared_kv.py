"""The keys and values of several texts in one pass of a model.

Texts that run together come to lie together: the first shared pass moves their rows into a block,
where a later pass of the same texts finds them in place and copies nothing. A pass of other texts,
or one that a slot is too short for, moves its texts to a block of their own. Nobody but the texts
owns a block, so there is no bank to be emptied: a block goes when its last text leaves or outgrows
it. Every slot of a block is as long as its longest text needs.

Rows of a text begin at the first of its slot. A shorter text has rows behind its own that masks
must hide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from treesnake.states.kv import KvBlock, KvCache, KvLayer
from treesnake.states.rowless_layer import RowlessLayer


@dataclass(frozen=True, eq=False)
class NewRows:
    """Which rows of a padded pass are new rows of texts, and where in their slots they belong.

    Args:
        num_before: for each text the number of rows that it has, those of earlier nodes included.
        num_new: for each text the number of rows that it gets.
    """

    num_before: tuple[int, ...]
    num_new: tuple[int, ...]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """For each text the number of rows that it will have."""
        pairs = zip(self.num_before, self.num_new, strict=True)
        return tuple(before + new for before, new in pairs)

    def indices(self, device: torch.device) -> Int[Tensor, "3 new_rows"]:
        """Returns for each new row its text, its number in the pass and its row in the slot."""
        if device not in self._indices:
            indices = [
                (text, number, before + number)
                for text, (before, new) in enumerate(
                    zip(self.num_before, self.num_new, strict=True)
                )
                for number in range(new)
            ]
            self._indices[device] = torch.tensor(indices, device=device).T
        return self._indices[device]

    @cached_property
    def _indices(self) -> dict[torch.device, Int[Tensor, "3 new_rows"]]:
        return {}


class SharedKvLayer(CacheLayerMixin):
    """One attention layer of several texts, for one pass."""

    is_croppable = False
    is_sliding = False

    def __init__(self, texts: Sequence[KvLayer], new_rows: NewRows) -> None:
        super().__init__()
        self._texts = texts
        self._new_rows = new_rows

    def lazy_initialization(
        self,
        key_states: Float[Tensor, "texts heads most_new key_dim"],
        value_states: Float[Tensor, "texts heads most_new value_dim"],
    ) -> None:
        """Prepares those texts that have no rows yet."""
        for text in self._texts:
            if not text.is_initialized:
                text.lazy_initialization(key_states[:1], value_states[:1])
        self.is_initialized = True

    def update(
        self,
        key_states: Float[Tensor, "texts heads most_new key_dim"],
        value_states: Float[Tensor, "texts heads most_new value_dim"],
        *args: object,
        **kwargs: object,
    ) -> tuple[
        Float[Tensor, "texts heads most_rows key_dim"],
        Float[Tensor, "texts heads most_rows value_dim"],
    ]:
        """Appends the rows that are no filling to their texts and returns all rows, padded."""
        self.lazy_initialization(key_states, value_states)
        block = self._common_block(key_states, value_states)
        text, number, row = self._new_rows.indices(key_states.device)
        block.keys[text, :, row] = key_states[text, :, number]
        block.values[text, :, row] = value_states[text, :, number]
        for each, end in zip(self._texts, self._new_rows.ends, strict=True):
            each.count(end)
        most_rows = max(self._new_rows.ends)
        return block.keys[:, :, :most_rows], block.values[:, :, :most_rows]

    def get_seq_length(self) -> int:
        """Returns the number of rows that the longest text has before the pass."""
        return max(self._new_rows.num_before)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns how many rows a mask must cover, and the first one's position."""
        return max(self._new_rows.ends), 0

    def get_max_length(self) -> int:
        """Returns -1: texts grow as they must."""
        return -1

    def _common_block(self, key_states: Tensor, value_states: Tensor) -> KvBlock:
        """Returns the block whose slots are these texts, in this order; makes it if need be."""
        texts, most_rows = self._texts, max(self._new_rows.ends)
        block = texts[0].block
        if (
            block is not None
            and block.num_slots == len(texts)
            and block.capacity >= most_rows
            and all(text.is_in(block, slot) for slot, text in enumerate(texts))
        ):
            return block
        block = KvBlock.empty(len(texts), most_rows, key_states, value_states)
        for slot, text in enumerate(texts):
            text.move(block, slot)
        return block


class SharedKvCache(Cache):
    """The caches of several texts as the one cache of a padded pass.

    Args:
        caches: of one model; their rows are exactly those that are meant to be held.
        new_rows: what the pass adds.
    """

    def __init__(self, caches: Sequence[KvCache], new_rows: NewRows) -> None:
        layers_of_texts = zip(*(cache.layers for cache in caches), strict=True)
        super().__init__(layers=[_shared(layers, new_rows) for layers in layers_of_texts])


def _shared(layers: Sequence[object], new_rows: NewRows) -> SharedKvLayer | RowlessLayer:
    """Returns one layer of several texts, which all keep rows there or none does."""
    texts = [layer for layer in layers if isinstance(layer, KvLayer)]
    return SharedKvLayer(texts, new_rows) if texts else RowlessLayer()
