"""How the nodes of a growing tree lie to each other, in the forms that kernels want."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from treesnake.kernels.tree_rows import TreeRows


@dataclass(frozen=True, eq=False)
class TreeLayout:
    """The parents of some nodes and what follows from them, computed once for every shape of tree.

    Attributes:
        parents: -1 continues the committed text, else a parent comes before its children.
        depths: the number of ancestors of each node; 0 is right behind the committed text.
        ancestor_mask: `[t, s]` is True where s is t or an ancestor of t.
        windows: for each node the rows of [history | inputs of all nodes] that its convolution
            sees, its own row last.
    """

    parents: Int[Tensor, " nodes"]
    depths: Int[Tensor, " nodes"]
    ancestor_mask: Bool[Tensor, "nodes nodes"]
    windows: Int[Tensor, "nodes conv_width"]

    def __len__(self) -> int:
        return len(self.parents)

    @cached_property
    def needed(self) -> Bool[np.ndarray, "nodes nodes"]:
        """Row n tells which nodes are among the last n + 1 or their ancestors; on a host only."""
        newest_first = self.ancestor_mask.numpy()[::-1]
        return np.ascontiguousarray(np.logical_or.accumulate(newest_first, axis=0))


@lru_cache(maxsize=1024)
def tree_layout(parents: tuple[int, ...], conv_width: int, device: torch.device) -> TreeLayout:
    """Returns the layout of a tree; a shape that was seen lately costs nothing."""
    num_nodes, num_history = len(parents), conv_width - 1
    # The last rows stand for the committed state, so that parent -1 finds them by itself.
    mask = np.zeros((num_nodes + 1, num_nodes), dtype=bool)
    windows = np.zeros((num_nodes + 1, conv_width), dtype=np.int64)
    windows[-1] = np.arange(-1, num_history)
    for node, parent in enumerate(parents):
        mask[node] = mask[parent]
        mask[node, node] = True
        windows[node, :-1] = windows[parent, 1:]
        windows[node, -1] = num_history + node
    return TreeLayout(
        torch.tensor(parents, dtype=torch.int64, device=device),
        torch.from_numpy(mask[:-1].sum(1) - 1).to(device),
        torch.from_numpy(mask[:-1]).to(device),
        torch.from_numpy(windows[:-1]).to(device),
    )


@dataclass(frozen=True)
class RowsSize:
    """The axes of `TreeRows`.

    Attributes:
        trees: the number of trees.
        new: the new nodes that each of them has room for.
        nodes: the nodes in all that each has room for.
    """

    trees: int
    new: int
    nodes: int

    def rounded(self) -> "RowsSize":
        """Returns one of few sizes, each number less than twice as large."""
        return RowsSize(round_up(self.trees), round_up(self.new), round_up(self.nodes))


def round_up(number: int) -> int:
    """Returns the smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def tree_rows(
    layouts: Sequence[TreeLayout],
    num_new: Sequence[int],
    slots: Sequence[int],
    size: RowsSize,
    spare_row: int,
) -> TreeRows:
    """Returns where the new nodes of some trees lie, on the host.

    Node t of a tree has row t. What fills up has the spare row, and the slot of the first tree.

    Args:
        layouts: the trees, on the host; the new nodes are the last of each.
        num_new: how many they are.
        slots: those of the trees.
        size: which may have room for more trees, and for more nodes.
        spare_row: a row that no node has.
    """
    conv_width = layouts[0].windows.shape[1]
    rows = TreeRows(
        slots=torch.full((size.trees,), slots[0]),
        rows=torch.full((size.trees, size.new), spare_row),
        parents=torch.full((size.trees, size.new), -1),
        ancestor_mask=torch.zeros(size.trees, size.new, size.nodes, dtype=torch.bool),
        windows=torch.zeros(size.trees, size.new, conv_width, dtype=torch.int64),
    )
    for tree, (layout, new, slot) in enumerate(zip(layouts, num_new, slots, strict=True)):
        num_nodes, newest = len(layout), slice(len(layout) - new, None)
        rows.slots[tree] = slot
        rows.rows[tree, :new] = torch.arange(num_nodes - new, num_nodes)
        rows.parents[tree, :new] = layout.parents[newest]
        rows.ancestor_mask[tree, :new, :num_nodes] = layout.ancestor_mask[newest]
        rows.windows[tree, :new] = layout.windows[newest]
    return rows
