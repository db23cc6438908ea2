"""Where the new nodes of some trees lie, in the form that tree kernels want."""

from dataclasses import dataclass

from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TreeRows:
    """The new nodes of some trees, one tree a text, in memory that many texts share.

    A text has a slot of that memory, and a node a row of its slot. Rows of a tree are in the order
    of appending, so a parent's comes before those of its children. Where trees have fewer new nodes
    than others, further nodes fill up: they have no ancestors and a row that nobody reads.

    Attributes:
        slots: the slot of each tree's text.
        rows: the row of each new node.
        parents: the row of each new node's parent; -1 continues the text.
        ancestor_mask: which of the first rows of its slot are the node itself or its ancestors.
        windows: for each new node the rows of [history | rows of its slot] that its convolution
            sees, its own row last.
    """

    slots: Int[Tensor, " trees"]
    rows: Int[Tensor, "trees new"]
    parents: Int[Tensor, "trees new"]
    ancestor_mask: Bool[Tensor, "trees new nodes"]
    windows: Int[Tensor, "trees new conv_width"]
