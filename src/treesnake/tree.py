"""Token trees: many continuations of one text, sharing their prefixes, as two small tuples.

Node 0 is the *anchor*, the last emitted token, which no model has consumed yet. Every other node
continues its parent. Nodes are in topological order (a parent comes before its children), and the
order of siblings is the order in which they were drawn; acceptance rules rely on it.

Trees live on the host, where they are drafted, accepted and searched. Networks make tensors of them
where a device needs some (`treesnake.states.tree_layout`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from treesnake.errors import InvalidInputError


@dataclass(frozen=True)
class TokenTree:
    """A tree of tokens, unbatched; everything else follows from its two tuples.

    Attributes:
        tokens: the token of each node, the anchor's first.
        parents: the parent of each node, which comes before it; -1 for the anchor.

    Raises:
        InvalidInputError: if the two differ in length, are empty or are not a tree in topological
            order.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents) or not self.parents:
            raise InvalidInputError(
                "a tree needs one parent per token and at least its anchor, got "
                f"{len(self.tokens)} tokens and {len(self.parents)} parents"
            )
        if not _is_topological(self.parents):
            raise InvalidInputError(
                "parents must start with -1 for the anchor and each other node must come after "
                f"its parent, got {list(self.parents)}"
            )

    @classmethod
    def of(cls, tokens: Sequence[int], parents: Sequence[int]) -> "TokenTree":
        """Makes a tree of any sequences of numbers."""
        return cls(tuple(map(int, tokens)), tuple(map(int, parents)))

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> "TokenTree":
        """Makes the tree without branches: each token continues the one before it."""
        return cls.of(tokens, range(-1, len(tokens) - 1))

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def num_drafted(self) -> int:
        """The number of drafted tokens: every node but the anchor."""
        return len(self) - 1

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """The number of edges between each node and the anchor."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @property
    def depth(self) -> int:
        """The depth of the deepest node."""
        return max(self.depths)

    @cached_property
    def children(self) -> list[list[int]]:
        """For each node its children in the order in which they were drawn."""
        children: list[list[int]] = [[] for _ in range(len(self))]
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                children[parent].append(node)
        return children

    @cached_property
    def num_expanded(self) -> tuple[int, ...]:
        """For each level the number of its nodes that have children."""
        pairs = zip(self.depths, self.children, strict=True)
        counts = Counter(depth for depth, children in pairs if children)
        return tuple(counts[depth] for depth in range(len(counts)))

    @cached_property
    def is_chain(self) -> bool:
        """Whether no node has more than one child."""
        return self.parents == tuple(range(-1, len(self) - 1))

    def path(self, node: int) -> tuple[int, ...]:
        """Returns the nodes from the anchor to `node`, both included."""
        nodes = [node]
        while (parent := self.parents[nodes[-1]]) >= 0:
            nodes.append(parent)
        return tuple(reversed(nodes))

    def follow(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Returns the path that has these tokens, the anchor's first, as far as it exists."""
        if not token_ids or token_ids[0] != self.tokens[0]:
            return ()
        path = [0]
        for token in token_ids[1:]:
            matches = [child for child in self.children[path[-1]] if self.tokens[child] == token]
            if not matches:
                break
            path.append(matches[0])
        return tuple(path)

    def path_tokens(self, node: int) -> list[int]:
        """Returns the tokens from the anchor to `node`, both included."""
        return [self.tokens[step] for step in self.path(node)]


@dataclass(eq=False)
class TreeBuilder:
    """Grows a tree node by node; the anchor is there from the start."""

    anchor: int
    tokens: list[int] = field(init=False)
    parents: list[int] = field(init=False)
    _child_of: dict[tuple[int, int], int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens, self.parents = [self.anchor], [-1]

    def add(self, parent: int, token: int) -> int:
        """Adds a child and returns its node; a child that exists already is returned as it is.

        Raises:
            InvalidInputError: if `parent` is not a node of the tree.
        """
        if not 0 <= parent < len(self.tokens):
            raise InvalidInputError(
                f"node {parent} cannot be a parent: the tree has nodes 0 to {len(self.tokens) - 1}"
            )
        node = self._child_of.setdefault((parent, token), len(self.tokens))
        if node == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
        return node

    def child(self, parent: int, token: int) -> int | None:
        """Returns the child of a node that has this token, if there is one."""
        return self._child_of.get((parent, token))

    def add_path(self, tokens: Sequence[int], parent: int = 0) -> int:
        """Adds one token after another below `parent` and returns the last node."""
        for token in tokens:
            parent = self.add(parent, token)
        return parent

    def build(self) -> TokenTree:
        """Returns the tree as it stands."""
        return TokenTree(tuple(self.tokens), tuple(self.parents))


def merge(
    first: TokenTree, second: TokenTree, is_kept: Callable[[int, int], bool] | None = None
) -> tuple[TokenTree, list[int]]:
    """Joins two trees over one anchor so that shared prefixes are nodes of their own only once.

    The nodes of `first` keep their numbers; siblings from `second` come after those of `first`.

    Args:
        first: the one that is there whole.
        second: the one whose nodes are added.
        is_kept: is asked for each node of `second` that `first` lacks, and told how many drafted
            nodes there are so far. One that is not kept is left out with all below it.

    Returns:
        The joint tree, and for each node of `second` its node there, -1 if it was left out.

    Raises:
        InvalidInputError: if the anchors differ, or `first` has two equal siblings.
    """
    if first.tokens[0] != second.tokens[0]:
        raise InvalidInputError(
            f"trees over different anchors cannot be merged: {first.tokens[0]} and "
            f"{second.tokens[0]}"
        )
    builder = TreeBuilder(first.tokens[0])
    for node, (parent, token) in enumerate(zip(first.parents, first.tokens, strict=True)):
        if parent >= 0 and builder.add(parent, token) != node:
            raise InvalidInputError(f"token {token} is drafted twice below node {parent}")
    nodes = [0]
    for node in range(1, len(second)):
        parent, token = nodes[second.parents[node]], second.tokens[node]
        is_new = parent >= 0 and builder.child(parent, token) is None
        if parent < 0 or (is_new and is_kept and not is_kept(node, len(builder.tokens) - 1)):
            nodes.append(-1)
        else:
            nodes.append(builder.add(parent, token))
    return builder.build(), nodes


def _is_topological(parents: Sequence[int]) -> bool:
    later = range(1, len(parents))
    return parents[0] == -1 and all(0 <= parents[node] < node for node in later)
