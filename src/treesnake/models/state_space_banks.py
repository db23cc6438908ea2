"""Passes over trees of a state space network: what they are told, and their CUDA graphs.

A drafter runs the same few shapes again and again, one small pass per level, and on a GPU launching
its kernels takes longer than running them. What differs between two passes of one size is read from
buffers: tokens, slots, parents, which nodes are ancestors, and what the convolutions see.
"""

from collections.abc import Hashable, Mapping, Sequence
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.clock import book_wait
from treesnake.models.cuda_graphs import Capture, GraphCache, PackedInputs, capture
from treesnake.models.fixed_growth import GrowthSize, growth_tensors, run_growth
from treesnake.models.state_space_inputs import Step, TreeInputs
from treesnake.models.state_space_state import GrownTree
from treesnake.shape import FixedTree
from treesnake.states.branching import BranchingKind, StateShape
from treesnake.states.ssm import SsmBank, SsmState
from treesnake.states.tree_layout import RowsSize
from treesnake.threads import new_lock
from treesnake.waiting_times import Noise

Graphs = GraphCache[Hashable]


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

            def run(tensors: Mapping[str, Tensor]) -> Float[Tensor, "trees new vocab"]:
                return step(TreeInputs.of_tensors(tensors), bank)

            if captured:
                logits = graphs.run(size, bank.generation, inputs.tensors, run, device).clone()
            else:
                logits = run(PackedInputs.packed(inputs.tensors).copied_to(device).tensors)
        return [rows[:new] for rows, new in zip(logits, num_new, strict=False)]

    def captures(self, device: torch.device) -> bool:
        """Tells whether passes on a device are captured."""
        return device.type == self._device_type and _has_kernels(device)

    def grow(
        self,
        step: Step,
        token_ids: Sequence[int],
        tree: GrownTree[SsmState],
        shape: FixedTree,
        network_ids: Int[Tensor, " columns"] | None,
        noise: Noise | None,
    ) -> list[list[int]]:
        """Runs new nodes of one tree, each below the one before, and grows a fixed tree below them.

        Returns the columns of the tokens that were chosen, and the network's tokens.

        Args:
            step: runs new nodes.
            token_ids: of the given nodes.
            tree: these nodes.
            shape: what grows below the last of them.
            network_ids: the network's token for each column of logits; None if they are the same.
            noise: by which a target draws; None for the most probable tokens.
        """
        bank = tree.memory.bank
        size = GrowthSize.of(len(token_ids), shape, is_noisy=noise is not None)

        def run(tensors: Mapping[str, Tensor]) -> Int[Tensor, "both drafted"]:
            return run_growth(tensors, step, bank, shape, network_ids)

        asked = perf_counter()
        with bank.lock:
            book_wait(asked)
            bank.reserve(size.most_rows + 1)
            told = growth_tensors(token_ids, tree, size, bank.num_rows - 1, noise)
            graphs = self._graphs[bank]
            return graphs.run(size, bank.generation, told, run, bank.recurrent.device).tolist()

    def forget_graphs(self) -> None:
        """Drops all graphs, because weights have moved."""
        for graphs in self._graphs.values():
            graphs.forget()


def _has_kernels(device: torch.device) -> bool:
    """Tells whether tree kernels run without looking at their inputs, as those in Triton do."""
    return device.type != "cuda" or find_spec("triton") is not None
