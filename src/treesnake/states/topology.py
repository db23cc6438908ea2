"""How the nodes of a growing tree lie to each other, in the forms that kernels want."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Topology:
    """The parents of some nodes and what follows from them, computed once for every shape of tree.

    Attributes:
        parents: -1 continues the committed state, else a parent comes before its children.
        ancestor_mask: `[t, s]` is True where s is t or an ancestor of t.
        windows: for each node the rows of [history | inputs of all nodes] that its convolution
            sees, its own row last.
    """

    parents: Int[Tensor, " nodes"]
    ancestor_mask: Bool[Tensor, "nodes nodes"]
    windows: Int[Tensor, "nodes conv_width"]

    def __len__(self) -> int:
        return len(self.parents)

    def clone(self) -> "Topology":
        """Returns a copy to be overwritten."""
        return Topology(self.parents.clone(), self.ancestor_mask.clone(), self.windows.clone())

    def overwrite(self, other: "Topology") -> None:
        """Makes this the topology of another tree with as many nodes, at the same addresses.

        Only for what `clone` returned: others share what `topology` returns.
        """
        self.parents.copy_(other.parents)
        self.ancestor_mask.copy_(other.ancestor_mask)
        self.windows.copy_(other.windows)


@lru_cache(maxsize=1024)
def topology(parents: tuple[int, ...], conv_width: int, device: torch.device) -> Topology:
    """Returns the topology of a tree; a shape that was seen lately costs nothing."""
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
    return Topology(
        torch.tensor(parents, dtype=torch.int64, device=device),
        torch.from_numpy(mask[:-1]).to(device),
        torch.from_numpy(windows[:-1]).to(device),
    )
