"""Levels of a tree as CUDA graphs: one for each number of nodes that a level and its tree have.

A drafter runs the same few shapes again and again, one small pass per level, and on a GPU launching
its kernels takes longer than running them. What differs between two passes of one size is read from
buffers: tokens, parents, which nodes are ancestors, and what the convolutions see.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.models.cuda_graphs import Capture, GraphCache, capture
from treesnake.states.ssm import SsmState
from treesnake.states.tree_layout import TreeLayout

Step = Callable[[Int[Tensor, " new"], TreeLayout, SsmState], Float[Tensor, "new vocab"]]
"""Runs the newest nodes of a tree: a pass, if the state and the layout stay where they are."""


@dataclass(frozen=True)
class LevelSize:
    """What a graph is for.

    Attributes:
        num_new: nodes of the level.
        num_nodes: nodes of the tree with them.
    """

    num_new: int
    num_nodes: int


@dataclass(frozen=True, eq=False)
class LevelInputs:
    """What a level is told."""

    token_ids: Int[Tensor, " new"]
    layout: TreeLayout

    def copied_to(self, device: torch.device) -> "LevelInputs":
        """Returns a copy on the same device, at addresses of its own."""
        assert device == self.token_ids.device
        return LevelInputs(self.token_ids.clone(), self.layout.clone())

    def overwrite(self, other: "LevelInputs") -> None:
        """Takes the values of another level of the same size."""
        self.token_ids.copy_(other.token_ids)
        self.layout.overwrite(other.layout)


class LevelGraphs:
    """The levels that were captured, for each state and as long as it lives.

    Args:
        capture: makes a replay of a pass; another one than of CUDA graphs is for tests.
    """

    def __init__(self, capture: Capture = capture) -> None:
        self._capture = capture
        self._graphs: WeakKeyDictionary[SsmState, GraphCache[LevelSize, LevelInputs]]
        self._graphs = WeakKeyDictionary()

    def can_run(self, state: SsmState, num_new: int) -> bool:
        """Tells whether this many new nodes of a tree run as a graph: on CUDA, by Triton."""
        has_kernels = find_spec("triton") is not None
        return has_kernels and self._graphs_of(state).serves(state.recurrent.device, num_new)

    def run(
        self, step: Step, token_ids: Int[Tensor, " new"], layout: TreeLayout, state: SsmState
    ) -> Float[Tensor, "new vocab"]:
        """Runs the newest nodes of a tree, for which the state has room already."""
        inputs = LevelInputs(token_ids, layout)
        size = LevelSize(len(token_ids), len(layout))
        room = state.conv_inputs.shape[1]  # it moves when the tree outgrows it
        logits = self._graphs_of(state).run(
            # The state is not kept, neither here nor by a graph: it would never be forgotten.
            size,
            room,
            inputs,
            lambda own: step(own.token_ids, own.layout, state),
            token_ids.device,
        )
        return logits.clone()

    def forget(self) -> None:
        """Drops all graphs, because weights have moved."""
        self._graphs.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "LevelGraphs":
        """Returns one without graphs, which read the weights that they were captured from."""
        return LevelGraphs(self._capture)

    def _graphs_of(self, state: SsmState) -> GraphCache[LevelSize, LevelInputs]:
        return self._graphs.setdefault(state, GraphCache(self._capture))
