"""Down a tree by the target's own tokens."""

from collections.abc import Callable

from treesnake.outcome import Acceptance
from treesnake.tree import TokenTree


def follow_target(tree: TokenTree, next_token: Callable[[int], int]) -> Acceptance:
    """Accepts from each node on the child that has the target's token, until no child has it.

    `next_token` is asked for the token after each node of the path, once.
    """
    path = [0]
    while True:
        token = next_token(path[-1])
        matches = [child for child in tree.children[path[-1]] if tree.tokens[child] == token]
        if not matches:
            return Acceptance(tuple(path), token)
        path.append(matches[0])
