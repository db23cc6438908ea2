"""The memory of texts in a recurrent network, and of the nodes of trees that grow on them.

A text is one recurrent state and the last inputs of the convolutions, whatever its length. Which
text it is, and how the nodes lie, `HeldText` says.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.reference.conv import next_history
from treesnake.states.branching import (
    BranchingKind,
    CommitSums,
    StateShape,
    bytes_per_node,
    grown,
)
from treesnake.states.slots import Bank
from treesnake.threads import on_one_thread
from treesnake.transfers import sent


class SsmBank(Bank):
    """The memory of many texts: each has a slot, and each node of its tree a row of the slot.

    Attributes:
        shape: the axes of everything below.
        history: the last inputs of each layer's convolution.
        recurrent: each layer's state after the text.
        conv_inputs: the inputs of the convolutions at each node.
        branching: what else is kept of the nodes.
    """

    def __init__(self, shape: StateShape, branching: BranchingKind, device: torch.device) -> None:
        super().__init__()
        self.shape = shape
        layers, channels = shape.num_layers, shape.conv_channels
        self.history: Float[Tensor, "layers slots history channels"]
        self.history = torch.zeros(layers, 0, shape.conv_width - 1, channels, device=device)
        self.recurrent: Float[Tensor, " layers slots *state"]
        self.recurrent = torch.zeros(layers, 0, *shape.state, device=device)
        self.conv_inputs: Float[Tensor, "layers slots rows channels"]
        self.conv_inputs = torch.zeros(layers, 0, 0, channels, device=device)
        self.branching = branching(shape, device)

    @property
    def num_slots(self) -> int:
        """The number of slots, free ones included; a power of two, or 0 before the first text."""
        return self.conv_inputs.shape[1]

    @property
    def num_rows(self) -> int:
        """The number of nodes that each slot has room for."""
        return self.conv_inputs.shape[2]

    @property
    def bytes_per_node(self) -> int:
        """The bytes that one node takes."""
        return bytes_per_node(self.conv_inputs) + self.branching.bytes_per_node

    def new_state(self, commit_path: "CommitPath", most_pending: int = 0) -> "SsmState":
        """Returns the state of an empty text.

        Args:
            commit_path: moves the text's part along a path, with the A of the network.
            most_pending: how many committed nodes may be pending; see `SsmState`.
        """
        with self.lock:
            slot = self._empty_slot()
            state = SsmState(self, slot, commit_path, most_pending)
            self._slots.take(slot, state)
        return state

    def _move(self, num_slots: int, num_rows: int) -> None:
        self.history = grown(self.history, num_slots)
        self.recurrent = grown(self.recurrent, num_slots)
        self.branching.move(num_slots, num_rows)
        self.generation += 1
        # Last, for it says how much room there is: an interrupt before must not promise any.
        self.conv_inputs = grown(self.conv_inputs, num_slots, num_rows)

    def _clear(self, slot: int) -> None:
        for tensor in (self.history, self.recurrent, self.conv_inputs):
            tensor[:, slot].zero_()
        self.branching.clear(slot)


class SsmState:
    """The memory of one text and its tree; others share the weights, nobody shares this.

    To move the text's part along one node takes as long as along many: it is read and written
    whole. So committed nodes may be *pending* where the network sums inputs along paths: their rows
    stay, as ancestors of every tree that follows, until there are too many of them or something
    else of the text's part is wanted.

    Args:
        bank: what the slot is one of.
        slot: its number there.
        commit_path: moves the text's part along a path.
        most_pending: how many committed nodes may be pending.

    Attributes:
        bank: likewise.
        slot: likewise.
        num_pending: the committed nodes that are pending. They have the first rows.
    """

    def __init__(
        self, bank: SsmBank, slot: int, commit_path: "CommitPath", most_pending: int
    ) -> None:
        self.bank = bank
        self.slot = slot
        self.num_pending = 0
        self._commit_path = commit_path
        self._most_pending = most_pending
        self._most_nodes = 0

    @property
    def shape(self) -> StateShape:
        """The axes of everything below."""
        return self.bank.shape

    @property
    def history(self) -> Float[Tensor, "layers history channels"]:
        """The last inputs of each layer's convolution, until the bank moves."""
        return self.bank.history[:, self.slot]

    @property
    def recurrent(self) -> Float[Tensor, " layers *state"]:
        """Each layer's state after the text, until the bank moves."""
        return self.bank.recurrent[:, self.slot]

    @property
    def num_bytes(self) -> int:
        """The bytes of the text's part and of the largest tree so far."""
        nodes = self._most_nodes * self.bank.bytes_per_node
        return self.history.nbytes + self.recurrent.nbytes + nodes

    def reserve(self, num_nodes: int) -> None:
        """Makes room for a tree of this many nodes; what is kept of nodes stays."""
        self.bank.reserve(num_nodes)
        self._most_nodes = max(self._most_nodes, num_nodes)

    def commit(self, path: Sequence[int]) -> None:
        """Moves the text's part to the end of a path of the tree, which may be empty.

        If this is interrupted, the text's part may be that of no text at all.
        """
        if not path:
            return
        pending = self.num_pending
        if tuple(path) == tuple(range(len(path))) and pending + len(path) <= self._most_pending:
            self.num_pending += len(path)
        else:
            self._move([*range(pending), *(pending + node for node in path)])

    def settle(self) -> None:
        """Moves the text's part along the nodes that are pending; interrupted like `commit`."""
        if self.num_pending:
            self._move(range(self.num_pending))

    def _move(self, rows: Sequence[int]) -> None:
        with self.bank.lock:
            self._commit_path(self, rows)
            self.num_pending = 0

    def reset(self) -> None:
        """Makes the text's part that of an empty text."""
        with self.bank.lock:
            self.num_pending = 0
            self.history.zero_()
            self.recurrent.zero_()

    has_rows = False
    """Nothing grows with the text, so that a copy brings it back wherever the text went on to."""

    def copy(self) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """Returns a copy of the text's part, for `restore`; interrupted like `commit`."""
        self.settle()
        with self.bank.lock:
            return self.history.clone(), self.recurrent.clone()

    mark = copy

    def return_to(self, length: int, marked: Sequence[Float[Tensor, "..."]]) -> None:
        """Makes the text's part what `mark` returned, whatever its length."""
        self.restore(length, marked)

    def restore(self, length: int, copied: Sequence[Float[Tensor, "..."]]) -> None:
        """Makes the text's part what `copy` returned here or in another state of the network."""
        history, recurrent = copied
        with self.bank.lock:
            self.num_pending = 0
            self.history.copy_(history)
            self.recurrent.copy_(recurrent)


CommitPath = Callable[[SsmState, Sequence[int]], None]
"""Moves a text's part to the end of a path of its tree, which is not empty."""


def commit_in_torch(commit_sums: CommitSums) -> CommitPath:
    """Returns how torch does it, given what moves states along the inputs of a path."""
    return partial(_commit_in_torch, commit_sums)


def _commit_in_torch(commit_sums: CommitSums, state: SsmState, path: Sequence[int]) -> None:
    state.bank.branching.commit(state.slot, path, state.recurrent, commit_sums)
    _push_history(state, path)


@on_one_thread
def _push_history(state: SsmState, path: Sequence[int]) -> None:
    inputs = state.bank.conv_inputs[:, state.slot, sent(path, state.history.device)]
    state.history.copy_(next_history(inputs, state.history))
