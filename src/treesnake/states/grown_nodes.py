"""The tree of one text with new nodes, as a pass over them needs it."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from treesnake.kernels.tree_rows import TreeRows
from treesnake.states.tree_layout import RowsSize, TreeLayout, tree_layout, tree_rows


@dataclass(frozen=True)
class GrownNodes:
    """The parents of all nodes of a tree, of which the last are to be run.

    Attributes:
        parents: the parent of each node; -1 continues the text.
        num_new: the number of new nodes.
    """

    parents: tuple[int, ...]
    num_new: int

    @property
    def num_before(self) -> int:
        """The number of nodes that were run earlier."""
        return len(self.parents) - self.num_new

    @property
    def is_chain(self) -> bool:
        """Whether each node of the tree continues the one before it."""
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    def layout(self, device: torch.device) -> TreeLayout:
        """Returns how all nodes lie to each other."""
        return tree_layout(self.parents, 1, device)

    def rows(self, conv_width: int, device: torch.device) -> TreeRows:
        """Returns the new nodes as the only tree of slot 0."""
        return _rows(self.parents, self.num_new, conv_width, device)

    def all_rows(self, device: torch.device) -> TreeRows:
        """Returns all nodes, run again with the new ones, as the only tree of slot 0."""
        return _rows(self.parents, len(self.parents), 1, device)


@lru_cache(maxsize=256)
def _rows(
    parents: tuple[int, ...], num_new: int, conv_width: int, device: torch.device
) -> TreeRows:
    layout = tree_layout(parents, conv_width, torch.device("cpu"))
    size = RowsSize(trees=1, new=num_new, nodes=len(parents))
    rows = tree_rows([layout], [num_new], [0], size, spare_row=0)
    return TreeRows(**{name: tensor.to(device) for name, tensor in vars(rows).items()})
