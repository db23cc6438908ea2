"""How the nodes of a growing tree lie to each other, in the forms that kernels want."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor


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

    def clone(self) -> "TreeLayout":
        """Returns a copy to be overwritten."""
        return TreeLayout(
            self.parents.clone(),
            self.depths.clone(),
            self.ancestor_mask.clone(),
            self.windows.clone(),
        )

    def overwrite(self, other: "TreeLayout") -> None:
        """Makes this the layout of another tree with as many nodes, at the same addresses.

        Only for what `clone` returned: others share what `tree_layout` returns.
        """
        self.parents.copy_(other.parents)
        self.depths.copy_(other.depths)
        self.ancestor_mask.copy_(other.ancestor_mask)
        self.windows.copy_(other.windows)


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
