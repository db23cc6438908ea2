"""What a state holds: a text, and the nodes of a tree that grows on it."""

from collections.abc import Sequence

from treesnake.errors import InvalidInputError
from treesnake.prompt import Key, Prompt, num_shared


class HeldText:
    """The book that every state keeps, whatever it keeps beside it.

    Nodes are numbered in the order of appending, from 0 after each cut and commit.

    Attributes:
        key: what the text is, place by place; see `Prompt.key`.
        tokens: those of the tree's nodes.
        parents: the parent of each node; -1 continues the text.
    """

    def __init__(self) -> None:
        self.key: list[Key] = []
        self.tokens: list[int] = []
        self.parents: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """The number of tokens in the text."""
        return len(self.key)

    def num_shared(self, prompt: Prompt) -> int:
        """Returns how much of the text is the beginning of a prompt without its last token."""
        return min(num_shared(self.key, prompt.key), len(prompt) - 1)

    def cut(self, length: int) -> None:
        """Forgets the tree, and the text from a length on."""
        del self.key[length:]
        self.forget_tree()

    def read(self, key: Sequence[Key]) -> None:
        """Continues the text; there must be no tree."""
        assert not self.tokens, "a text does not grow below a tree"
        self.key += key

    def check_growth(self, token_ids: Sequence[int], parents: Sequence[int]) -> None:
        """Checks that nodes can be appended.

        Raises:
            InvalidInputError: if there is none, one lacks its token or its parent, or a parent does
                not exist yet.
        """
        if not parents or len(token_ids) != len(parents):
            raise InvalidInputError(
                "a tree grows by at least one node at a time, and each needs a token and a parent, "
                f"got {len(token_ids)} tokens and {len(parents)} parents"
            )
        for node, parent in enumerate(parents, len(self.tokens)):
            if not -1 <= parent < node:
                raise InvalidInputError(
                    f"node {node} cannot continue node {parent}: parents are -1 (the text) or "
                    "nodes that come before"
                )

    def append(self, token_ids: Sequence[int], parents: Sequence[int]) -> None:
        """Appends nodes below earlier ones, or below the text (-1)."""
        self.tokens += token_ids
        self.parents += tuple(parents)

    def check_path(self, path: Sequence[int]) -> None:
        """Checks that a path can be committed.

        Raises:
            InvalidInputError: if it does not go down the tree from a child of the text.
        """
        for parent, node in zip((-1, *path), path, strict=False):
            if not 0 <= node < len(self.tokens) or self.parents[node] != parent:
                raise InvalidInputError(
                    f"{list(path)} is not a path of the tree: node {node} does not continue "
                    f"{'the text' if parent < 0 else f'node {parent}'}"
                )

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path into the text and forgets the tree; the path may be empty."""
        self.key += [self.tokens[node] for node in path]
        self.forget_tree()

    def forget_tree(self) -> None:
        """Drops all nodes."""
        self.tokens = []
        self.parents = ()
