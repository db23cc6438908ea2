"""Down a tree by the target's own tokens."""

from collections.abc import Callable

from treesnake.outcome import Acceptance
from treesnake.tree import TokenTree


def follow_target(tree: TokenTree, next_token: Callable[[int], int]) -> Acceptance:
    """Accepts from each node on the child that has the target's token, until no child has it.

    `next_token` is asked for the token after each node of the path, once.
    """
    path, token = [0], next_token(0)
    for node in range(1, len(tree)):  # a child comes after its parent
        if tree.parents[node] == path[-1] and tree.tokens[node] == token:
            path.append(node)
            token = next_token(node)
    return Acceptance(tuple(path), token)
