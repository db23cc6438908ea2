"""The state of one sequence in a recurrent network: a committed text, and a tree that grows on it.

A text is committed as one recurrent state and the last inputs of the convolutions, whatever its
length. Nodes are appended to the tree as their tokens become known, and are numbered in that order;
committing a path moves the state to the path's end and drops the tree.
"""

from collections.abc import Sequence
from copy import copy

import torch

from treesnake.errors import InvalidInputError
from treesnake.kernels.reference.conv import next_history
from treesnake.states.branching import Branching, StateShape, with_room
from treesnake.states.tree_layout import TreeLayout, tree_layout
from treesnake.threads import on_one_thread


class SsmState:
    """One sequence's state over weights that many sequences share.

    *Pending* tokens are accepted but were never run, as happens to a leaf of a draft, whose output
    nobody needed. They are run in front of the next nodes, in the same pass, and are part of every
    path from then on; whoever appends nodes need not know of them.

    Attributes:
        shape: the axes of everything below.
        history: the last inputs of each layer's convolution.
        recurrent: each layer's committed state.
        branching: what is kept of the tree's nodes.
        conv_inputs: the inputs of the convolutions at each node.
        length: the number of tokens that are committed, pending ones not included.
    """

    def __init__(self, shape: StateShape, branching: Branching, device: torch.device) -> None:
        self.shape = shape
        self.branching = branching
        num_layers = shape.num_layers
        history_shape = (shape.conv_width - 1, shape.conv_channels)
        self.history = torch.zeros(num_layers, *history_shape, device=device)
        self.recurrent = torch.zeros(num_layers, *shape.state, device=device)
        self.conv_inputs = torch.empty(num_layers, 0, shape.conv_channels, device=device)
        self.length = 0
        self._pending: tuple[int, ...] = ()
        self._parents: tuple[int, ...] = ()
        self._num_trunk = 0  # nodes in front of the caller's own: pending tokens that were run

    @property
    def num_nodes(self) -> int:
        """The number of nodes that the tree has, as its caller counts them."""
        return len(self._parents) - self._num_trunk

    @property
    def num_bytes(self) -> int:
        """The bytes that this state holds: the committed part and the room for nodes."""
        return self.shape.committed_bytes + self.conv_inputs.nbytes + self.branching.num_bytes

    @property
    def layout(self) -> TreeLayout:
        """How all nodes lie, those of pending tokens included."""
        return tree_layout(self._parents, self.shape.conv_width, self.history.device)

    def append(self, parents: Sequence[int]) -> tuple[int, ...]:
        """Adds nodes to the tree; returns pending tokens, to be run in front of the new nodes.

        Args:
            parents: node numbers, those of earlier ones of the new nodes included; -1 continues
                the text.

        Raises:
            InvalidInputError: if there is no node or a parent does not exist yet.
        """
        if not parents:
            raise InvalidInputError("a tree grows by at least one node at a time, got none")
        for node, parent in enumerate(parents, self.num_nodes):
            if not -1 <= parent < node:
                raise InvalidInputError(
                    f"node {node} cannot continue node {parent}: parents are -1 (the text) or "
                    "nodes that come before"
                )
        tokens = self.take_pending()
        if tokens:
            assert not self._parents, "tokens become pending by a commit, which drops the tree"
            self._num_trunk = len(tokens)
            self._parents = tuple(range(-1, len(tokens) - 1))
        self._parents += tuple(parent + self._num_trunk for parent in parents)
        self.conv_inputs = with_room(self.conv_inputs, len(self._parents))
        self.branching.reserve(len(self._parents))
        return tokens

    def take_pending(self) -> tuple[int, ...]:
        """Returns the pending tokens to whoever runs them as text, and forgets them."""
        tokens, self._pending = self._pending, ()
        return tokens

    def advance(self, num_tokens: int) -> None:
        """Notes that so many tokens were run as text, straight into the committed state."""
        self.length += num_tokens

    def commit(self, path: Sequence[int], pending: Sequence[int] = ()) -> None:
        """Takes a path of the tree into the committed state and drops the tree.

        Args:
            path: nodes from a child of the text downwards; may be empty.
            pending: tokens accepted after the path that are no nodes: they are run later.

        Raises:
            InvalidInputError: if `path` is not a path; the state is then as before.
        """
        for parent, node in zip((-1, *path), path, strict=False):
            if not 0 <= node < self.num_nodes or self._parent_of(node) != parent:
                raise InvalidInputError(
                    f"{list(path)} is not a path of the tree: node {node} does not continue "
                    f"{'the text' if parent < 0 else f'node {parent}'}"
                )
        trunk = self._num_trunk
        nodes = [*range(trunk), *(node + trunk for node in path)]
        if nodes:
            self.branching.commit(nodes, self.recurrent)
            self._push_history(nodes)
            self.length += len(nodes)
        self._parents, self._num_trunk = (), 0
        self._pending += tuple(pending)

    @on_one_thread
    def _push_history(self, nodes: list[int]) -> None:
        self.history.copy_(next_history(self.conv_inputs[:, nodes], self.history))

    def clear_tree(self) -> None:
        """Drops the tree as if it had never been grown; what was committed or is pending stays."""
        self._parents = self._parents[: self._num_trunk]

    def reset(self) -> None:
        """Forgets the text, the pending tokens and the tree."""
        self.history.zero_()
        self.recurrent.zero_()
        self.length = 0
        self._pending, self._parents, self._num_trunk = (), (), 0

    def clone(self) -> "SsmState":
        """Returns an independent copy; costs the bytes of the committed state and of the nodes."""
        twin = copy(self)
        twin.history, twin.recurrent = self.history.clone(), self.recurrent.clone()
        twin.conv_inputs = self.conv_inputs[:, : len(self._parents)].clone()
        twin.branching = self.branching.clone(len(self._parents))
        return twin

    def _parent_of(self, node: int) -> int:
        return max(self._parents[node + self._num_trunk] - self._num_trunk, -1)
