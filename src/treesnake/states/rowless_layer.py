"""The layer of a cache that keeps nothing: without attention, or with the rows of another layer."""

from typing import TYPE_CHECKING

from transformers import cache_utils

if TYPE_CHECKING or hasattr(cache_utils, "DummyLayer"):
    from transformers.cache_utils import DummyLayer as RowlessLayer
else:

    class RowlessLayer:
        """What transformers calls a dummy layer from version 5.23 on."""

        is_initialized = True
        is_compileable = True
        is_croppable = True
        supports_early_init = False

        def get_max_length(self) -> int:
            """Returns -1: it holds any number of tokens."""
            return -1


__all__ = ["RowlessLayer"]
