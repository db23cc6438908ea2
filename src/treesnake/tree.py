"""Token trees: many continuations of one text, sharing their prefixes, as three small arrays.

Node 0 is the *anchor*, the last emitted token, which no model has consumed yet. Every other node
continues its parent. Nodes are in topological order (a parent comes before its children), and the
order of siblings is the order in which they were drawn; acceptance rules rely on it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from treesnake.errors import InvalidInputError


@dataclass(frozen=True, eq=False)
class TokenTree:
    """A tree of tokens, unbatched, on any device.

    `parents[0]` is -1 and `parents[t] < t`. Everything else follows from the two arrays and is
    computed at most once, without a synchronisation of the device except where it returns lists.

    Raises:
        InvalidInputError: if the arrays differ in length, are empty or are not a tree in
            topological order (the order is checked on a CPU only, where looking costs nothing).
    """

    token_ids: Int[Tensor, " nodes"]
    parents: Int[Tensor, " nodes"]

    def __post_init__(self) -> None:
        if self.token_ids.shape != self.parents.shape or self.parents.numel() == 0:
            raise InvalidInputError(
                "a tree needs one parent per token and at least its anchor, got "
                f"{tuple(self.token_ids.shape)} tokens and {tuple(self.parents.shape)} parents"
            )
        if self.parents.device.type == "cpu" and not _is_topological(self.parents.tolist()):
            raise InvalidInputError(
                "parents must start with -1 for the anchor and each other node must come after "
                f"its parent, got {self.parents.tolist()}"
            )

    @classmethod
    def chain(cls, token_ids: Int[Tensor, " nodes"]) -> "TokenTree":
        """Builds the tree without branches: each token continues the one before it."""
        return cls(token_ids, torch.arange(-1, len(token_ids) - 1, device=token_ids.device))

    def __len__(self) -> int:
        return self.parents.shape[0]

    @property
    def num_drafted(self) -> int:
        """The number of drafted tokens: every node but the anchor."""
        return len(self) - 1

    @cached_property
    def ancestor_mask(self) -> Bool[Tensor, "nodes nodes"]:
        """`[t, s]` is True where s is t or an ancestor of t: what node t may attend to.

        Pointer doubling: each round doubles how far up a node sees, so that log2(nodes) rounds of
        whole-array operations do, whatever the depth.
        """
        num_nodes = len(self)
        mask = torch.eye(num_nodes, dtype=torch.bool, device=self.parents.device)
        jump = self.parents.clamp(min=0)
        for _ in range((num_nodes - 1).bit_length()):
            mask = mask | mask[jump]
            jump = jump[jump]
        return mask

    @cached_property
    def depths(self) -> Int[Tensor, " nodes"]:
        """The number of edges between each node and the anchor."""
        return self.ancestor_mask.sum(-1) - 1

    @cached_property
    def tokens(self) -> list[int]:
        """The token ids as a list on the host."""
        return self.token_ids.tolist()

    @cached_property
    def parent_list(self) -> list[int]:
        """The parents as a list on the host."""
        return self.parents.tolist()

    @cached_property
    def children(self) -> list[list[int]]:
        """For each node its children in the order in which they were drawn."""
        children: list[list[int]] = [[] for _ in range(len(self))]
        for node, parent in enumerate(self.parent_list):
            if parent >= 0:
                children[parent].append(node)
        return children

    @cached_property
    def num_expanded(self) -> tuple[int, ...]:
        """For each level the number of its nodes that have children."""
        depths = [0]
        for parent in self.parent_list[1:]:
            depths.append(depths[parent] + 1)
        counts = Counter(d for d, children in zip(depths, self.children, strict=True) if children)
        return tuple(counts[depth] for depth in range(len(counts)))

    @cached_property
    def is_chain(self) -> bool:
        """Whether no node has more than one child."""
        return self.parent_list == list(range(-1, len(self) - 1))

    def path(self, node: int) -> tuple[int, ...]:
        """Returns the nodes from the anchor to `node`, both included."""
        nodes = [node]
        while (parent := self.parent_list[nodes[-1]]) >= 0:
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

    def build(self, device: torch.device | str = "cpu") -> TokenTree:
        """Returns the tree as it stands."""
        return TokenTree(
            torch.tensor(self.tokens, device=device),
            torch.tensor(self.parents, device=device),
        )


def level_parents(widths: Sequence[int]) -> list[int]:
    """Returns the parents of a full tree in which every node at depth i has `widths[i]` children.

    (3, 2, 2, 1, 1) is the notation of Mamba Drafters (Choi et al. 2025): 1 + 3 + 6 + 12 + 12 + 12
    nodes, level by level.

    Raises:
        InvalidInputError: if a width is not positive.
    """
    if any(width < 1 for width in widths):
        raise InvalidInputError(f"level widths must be at least 1, got {tuple(widths)}")
    parents, level = [-1], [0]
    for width in widths:
        first = len(parents)
        parents += [parent for parent in level for _ in range(width)]
        level = list(range(first, len(parents)))
    return parents


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
    for node, (parent, token) in enumerate(zip(first.parent_list, first.tokens, strict=True)):
        if parent >= 0 and builder.add(parent, token) != node:
            raise InvalidInputError(f"token {token} is drafted twice below node {parent}")
    nodes = [0]
    for node in range(1, len(second)):
        parent, token = nodes[second.parent_list[node]], second.tokens[node]
        is_new = parent >= 0 and builder.child(parent, token) is None
        if parent < 0 or (is_new and is_kept and not is_kept(node, len(builder.tokens) - 1)):
            nodes.append(-1)
        else:
            nodes.append(builder.add(parent, token))
    return builder.build(first.token_ids.device), nodes


def _is_topological(parents: list[int]) -> bool:
    later = range(1, len(parents))
    return parents[0] == -1 and all(0 <= parents[node] < node for node in later)
