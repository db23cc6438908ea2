"""Token trees as arrays of a fixed size, as engines with tree kernels take them."""

import numpy as np
from numpy.typing import NDArray

from treesnake.tree import TokenTree


def tree_arrays(
    tree: TokenTree | None, anchor: int, num_nodes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the tokens of a tree and its mask, filled up with nodes that nobody can reach.

    Args:
        tree: at most as large; None for the anchor alone.
        anchor: the token that it grows from.
        num_nodes: the size, the anchor included.

    Returns:
        The token of each node, and 1 where a node sees another one: itself and its ancestors. A
        node that fills up sees itself alone, so that it has no parent.
    """
    tokens = np.zeros(num_nodes, np.int64)
    mask = np.eye(num_nodes, dtype=np.int64)
    tokens[0] = anchor
    if tree is not None:
        tokens[: len(tree)] = tree.tokens
        for node, parent in enumerate(tree.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
    return tokens, mask
