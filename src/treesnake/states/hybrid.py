"""What a model with recurrent layers remembers of a text: rows of attention, and layer memories."""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from treesnake.states.kv import KvCache
from treesnake.states.layer_memory import LayerMemory


class HybridMemory:
    """The memory of one text and its tree, in all layers.

    Attributes:
        length: the number of tokens in the text.
        shift: what to add to a number of tokens for the position of the next, where images take
            fewer positions than they have placeholders.
        rows: keys and values, those of the text and then those of the nodes.
        layers: the memories of recurrent layers, by the number of the layer.
    """

    def __init__(self, has_rows: Sequence[bool], num_convolutions: Sequence[int]) -> None:
        self.length = 0
        self.shift = 0
        self.rows = KvCache(has_rows)
        self.layers = {
            number: LayerMemory()
            for number, convolutions in enumerate(num_convolutions)
            if convolutions
        }
        self.has_rows = any(has_rows)

    @property
    def num_bytes(self) -> int:
        """What text and tree take in memory."""
        rows = self.rows.num_bytes(self.length)
        return rows + sum(layer.num_bytes for layer in self.layers.values())

    def commit(self, path: Sequence[int]) -> None:
        """Moves the text to the end of a path and forgets the tree."""
        self.rows.keep(self.length, path)
        for layer in self.layers.values():
            layer.commit(path)
        self.length += len(path)

    def forget_tree(self) -> None:
        """Drops all nodes, those of interrupted passes too."""
        self.commit(())

    def reset(self) -> None:
        """Makes the text an empty one."""
        self.length = 0
        self.shift = 0
        self.rows.keep(0)
        for layer in self.layers.values():
            layer.reset()

    def mark(self) -> tuple[Shaped[Tensor, "..."], ...]:
        """Returns what brings the text back while a text that begins with it is held."""
        layers = (tensor for layer in self.layers.values() for tensor in layer.copy())
        return torch.tensor(self.shift), *layers

    def return_to(self, length: int, marked: Sequence[Shaped[Tensor, "..."]]) -> None:
        """Makes the text its own beginning of a length, given what `mark` returned there."""
        self.length = length
        self.rows.keep(length)
        self._restore_mark(marked)

    def copy(self) -> tuple[Shaped[Tensor, "..."], ...]:
        """Returns a copy of all of the text's part, for `restore` here or elsewhere."""
        return *self.mark(), *self.rows.copy(self.length)

    def restore(self, length: int, copied: Sequence[Shaped[Tensor, "..."]]) -> None:
        """Makes the text that of a length whose `copy` this is."""
        self.rows.restore(self._restore_mark(copied))
        self.length = length

    def _restore_mark(
        self, tensors: Sequence[Shaped[Tensor, "..."]]
    ) -> list[Shaped[Tensor, "..."]]:
        """Takes what `mark` returned, and returns what is behind all of that."""
        shift, *rest = tensors
        self.shift = int(shift)
        for layer in self.layers.values():
            del rest[: layer.restore(rest)]
        return rest
