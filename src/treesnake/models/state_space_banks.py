"""Passes over trees of a state space network: what they are told, and their CUDA graphs.

A drafter runs the same few shapes again and again, one small pass per level, and on a GPU launching
its kernels takes longer than running them. What differs between two passes of one size is read from
buffers: tokens, slots, parents, which nodes are ancestors, and what the convolutions see.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.clock import book_wait
from treesnake.kernels.tree_rows import TreeRows
from treesnake.models.cuda_graphs import Capture, GraphCache, capture
from treesnake.models.state_space_state import GrownTree
from treesnake.states.branching import BranchingKind, StateShape
from treesnake.states.ssm import SsmBank, SsmState
from treesnake.states.tree_layout import RowsSize, tree_rows
from treesnake.threads import new_lock


@dataclass(frozen=True, eq=False)
class TreeInputs:
    """What a pass over new nodes of some trees is told; nodes that fill up have token 0."""

    token_ids: Int[Tensor, "trees new"]
    rows: TreeRows

    @classmethod
    def of(
        cls,
        token_ids: Sequence[int],
        trees: Sequence[GrownTree[SsmState]],
        size: RowsSize,
        spare_row: int,
    ) -> "TreeInputs":
        """Returns the inputs of a pass, on the host; the tokens are those of tree after tree."""
        num_new = [tree.num_new for tree in trees]
        padded = torch.zeros(size.trees, size.new, dtype=torch.int64)
        for row, tokens in zip(padded, torch.tensor(token_ids).split(num_new), strict=False):
            row[: len(tokens)] = tokens
        layouts = [tree.layout for tree in trees]
        slots = [tree.memory.slot for tree in trees]
        return cls(padded, tree_rows(layouts, num_new, slots, size, spare_row))

    def copied_to(self, device: torch.device) -> "TreeInputs":
        """Returns a copy on a device, at addresses of its own."""
        rows = {name: tensor.to(device, copy=True) for name, tensor in vars(self.rows).items()}
        return TreeInputs(self.token_ids.to(device, copy=True), TreeRows(**rows))

    def overwrite(self, other: "TreeInputs") -> None:
        """Takes the values of other inputs of the same size, wherever these are."""
        self.token_ids.copy_(other.token_ids)
        for name, tensor in vars(self.rows).items():
            tensor.copy_(getattr(other.rows, name))


Step = Callable[[TreeInputs, SsmBank], Float[Tensor, "trees new vocab"]]
"""Runs new nodes, on tensors alone and without waiting for the device."""

Graphs = GraphCache[RowsSize, TreeInputs]


class StateSpaceBanks:
    """Where the texts of one network have their slots, and the graphs of passes over these.

    There is a bank for each way to branch and each device that the network was on.

    Args:
        shape: the axes of a text's state.
        capture: how a pass is captured; another one than of CUDA graphs is for tests.
        device_type: where it is.
    """

    def __init__(
        self, shape: StateShape, capture: Capture = capture, device_type: str = "cuda"
    ) -> None:
        self._shape = shape
        self._capture = capture
        self._device_type = device_type
        self._banks: dict[tuple[BranchingKind, torch.device], SsmBank] = {}
        self._graphs: dict[SsmBank, Graphs] = {}
        self._lock = new_lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "StateSpaceBanks":
        """Returns one without texts and without graphs, for the copy of a network."""
        return StateSpaceBanks(self._shape, self._capture, self._device_type)

    def bank(self, branching: BranchingKind, device: torch.device) -> SsmBank:
        """Returns the bank for texts that branch in one way."""
        key = (branching, device)
        with self._lock:
            if key not in self._banks:
                bank = self._banks[key] = SsmBank(self._shape, branching, device)
                self._graphs[bank] = GraphCache(self._capture, self._device_type)
            return self._banks[key]

    def run(
        self, step: Step, token_ids: Sequence[int], trees: Sequence[GrownTree[SsmState]]
    ) -> list[Float[Tensor, "_ vocab"]]:
        """Runs the new nodes of some trees of one bank; returns the logits of each tree."""
        bank = trees[0].memory.bank
        assert all(tree.memory.bank is bank for tree in trees), "the network was moved meanwhile"
        graphs, device = self._graphs[bank], bank.recurrent.device
        num_new = [tree.num_new for tree in trees]
        size = RowsSize(len(trees), max(num_new), max(len(tree.layout) for tree in trees))
        rounded = size.rounded()
        captured = _has_kernels(device) and graphs.serves(device, rounded.trees * rounded.new)
        if captured:
            size = rounded
        asked = perf_counter()
        with bank.lock:
            book_wait(asked)
            bank.reserve(size.nodes + 1)
            inputs = TreeInputs.of(token_ids, trees, size, spare_row=bank.num_rows - 1)
            if captured:
                logits = graphs.run(
                    size, bank.generation, inputs, lambda own: step(own, bank), device
                ).clone()
            else:
                logits = step(inputs.copied_to(device), bank)
        return [rows[:new] for rows, new in zip(logits, num_new, strict=False)]

    def forget_graphs(self) -> None:
        """Drops all graphs, because weights have moved."""
        for graphs in self._graphs.values():
            graphs.forget()


def _has_kernels(device: torch.device) -> bool:
    """Tells whether tree kernels run without looking at their inputs, as those in Triton do."""
    return device.type != "cuda" or find_spec("triton") is not None
