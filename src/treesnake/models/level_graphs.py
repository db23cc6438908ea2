"""Levels of a tree as CUDA graphs: one for each number of nodes that a level and its tree have.

A drafter runs the same few shapes again and again, one small pass per level, and on a GPU launching
its kernels takes longer than running them. What differs between two passes of one size is read from
buffers: tokens, parents, which nodes are ancestors, and what the convolutions see.

Source: Mamba Drafters (Choi et al. 2025), "graph caching".
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.models.cuda_graphs import Pass, capture
from treesnake.states.ssm import SsmState
from treesnake.states.tree_layout import TreeLayout

LARGEST_LEVEL = 64
"""Nodes; larger levels have enough work to hide what launching it costs."""

MOST_GRAPHS = 128
"""Graphs of one state; trees whose levels are never of the same size are not worth capturing."""

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
class _Level:
    """A captured level with what it reads.

    Attributes:
        room: the state's room for nodes; it moves when the tree outgrows it.
    """

    token_ids: Int[Tensor, " new"]
    layout: TreeLayout
    room: Float[Tensor, "layers nodes channels"]
    replay: Pass


class LevelGraphs:
    """The levels that were captured, for each state and as long as it lives.

    Args:
        capture: makes a replay of a pass; another one than of CUDA graphs is for tests.
    """

    def __init__(self, capture: Callable[[Pass, torch.device], Pass] = capture) -> None:
        self._capture = capture
        self._levels: WeakKeyDictionary[SsmState, dict[LevelSize, _Level]] = WeakKeyDictionary()

    def can_run(self, state: SsmState, num_new: int) -> bool:
        """Tells whether this many new nodes of a tree run as a graph: on CUDA, by Triton."""
        has_kernels = state.recurrent.is_cuda and find_spec("triton") is not None
        return has_kernels and num_new <= LARGEST_LEVEL

    def run(
        self, step: Step, token_ids: Int[Tensor, " new"], layout: TreeLayout, state: SsmState
    ) -> Float[Tensor, "new vocab"]:
        """Runs the newest nodes of a tree, for which the state has room already."""
        levels = self._levels.setdefault(state, {})
        size = LevelSize(len(token_ids), len(layout))
        level = levels.get(size)
        if level is None and len(levels) >= MOST_GRAPHS:
            return step(token_ids, layout, state)
        if level is None or level.room is not state.conv_inputs:
            level = levels[size] = self._captured(step, token_ids, layout, state)
        level.token_ids.copy_(token_ids)
        level.layout.overwrite(layout)
        return level.replay().clone()

    def forget(self) -> None:
        """Drops all graphs, because weights have moved."""
        self._levels.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "LevelGraphs":
        """Returns one without graphs, which read the weights that they were captured from."""
        return LevelGraphs(self._capture)

    def _captured(
        self, step: Step, token_ids: Int[Tensor, " new"], layout: TreeLayout, state: SsmState
    ) -> _Level:
        tokens, layout = token_ids.clone(), layout.clone()
        # The state is not kept, neither here nor by a graph: it would never be forgotten.
        replay = self._capture(lambda: step(tokens, layout, state), token_ids.device)
        return _Level(tokens, layout, state.conv_inputs, replay)
