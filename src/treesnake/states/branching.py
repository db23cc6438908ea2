"""Ways to let a recurrent state branch: keep every node's state, or every node's inputs.

They give the same outputs and the same committed states. *State copies* (Choi et al. 2025) cost a
state for each node and the work of plain stepping. *Path sums* cost a node's inputs only, a
hundredth of that for Mamba-2, and work that grows with the depth of the tree. *Replayed paths* cost
the same memory and the work of plain stepping, and have its bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.dispatch import SsmKernels
from treesnake.kernels.tree_rows import TreeRows
from treesnake.threads import on_one_thread
from treesnake.transfers import sent


@dataclass(frozen=True)
class StateShape:
    """What one sequence's state is made of, per layer.

    Attributes:
        num_layers: layers.
        conv_width: inputs that a convolution sees, its own included.
        conv_channels: channels of the convolution.
        state: axes of the recurrent state.
        x: axes of a node's input.
        dt: axes of a node's step sizes.
        B: axes of the directions in which a node writes.
    """

    num_layers: int
    conv_width: int
    conv_channels: int
    state: tuple[int, ...]
    x: tuple[int, ...]
    dt: tuple[int, ...]
    B: tuple[int, ...]


@dataclass(frozen=True)
class Selected:
    """What a layer's recurrence is told by each token, or by each of the newest nodes of a tree.

    Axes after the rows are those of `StateShape`; A and D are the layer's own and have no rows.
    """

    x: Float[Tensor, "*rows_x"]
    dt: Float[Tensor, "*rows_dt"]
    A: Float[Tensor, "*a_axes"]
    B: Float[Tensor, "*rows_b"]
    C: Float[Tensor, "*rows_b"]
    D: Float[Tensor, "*dt_axes"]


CommitSums = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""`SsmKernels.commit_sums` in one of its forms with the A of a network: moves states along the x,
dt and B of a path, in place."""


class StateCopies:
    """Keeps the recurrent state after every node; a child starts from its parent's.

    Like every way to branch it holds the nodes of many texts, a slot for each text and a row for
    each node.

    Source: Mamba Drafters (Choi et al. 2025), "batch-wise state caching".
    """

    def __init__(self, shape: StateShape, device: torch.device) -> None:
        self.states = torch.zeros(shape.num_layers, 0, 0, *shape.state, device=device)

    @property
    def bytes_per_node(self) -> int:
        """The bytes of one node, without its inputs to the convolutions."""
        return bytes_per_node(self.states)

    def move(self, num_slots: int, num_rows: int) -> None:
        """Moves to more slots or rows; what is kept of nodes stays."""
        self.states = grown(self.states, num_slots, num_rows)

    def clear(self, slot: int) -> None:
        """Forgets the nodes of a text."""
        self.states[:, slot].zero_()

    def extend(
        self,
        kernels: SsmKernels,
        layer: int,
        selected: Selected,
        committed: Float[Tensor, " slots *state_axes"],
        new: TreeRows,
    ) -> Float[Tensor, " trees new *x_axes"]:
        """Runs the new nodes of some trees through a layer's recurrence; returns the outputs."""
        return kernels.extend_copies(
            selected.x,
            selected.dt,
            selected.A,
            selected.B,
            selected.C,
            selected.D,
            committed,
            self.states[layer],
            new,
        )

    @on_one_thread
    def commit(
        self,
        slot: int,
        path: Sequence[int],
        committed: Float[Tensor, " layers *state_axes"],
        commit_sums: CommitSums,
    ) -> None:
        """Moves the state of a text to the end of a path, in all layers."""
        committed.copy_(self.states[:, slot, path[-1]])


class PathSums:
    """Keeps the inputs of every node and no state but the committed one.

    Source: the closed form of STree (Wu et al. 2025), here grown level by level.
    """

    def __init__(self, shape: StateShape, device: torch.device) -> None:
        self.x = torch.zeros(shape.num_layers, 0, 0, *shape.x, device=device)
        self.dt = torch.zeros(shape.num_layers, 0, 0, *shape.dt, device=device)
        self.B = torch.zeros(shape.num_layers, 0, 0, *shape.B, device=device)

    @property
    def bytes_per_node(self) -> int:
        """The bytes of one node, without its inputs to the convolutions."""
        return sum(bytes_per_node(rows) for rows in (self.x, self.dt, self.B))

    def move(self, num_slots: int, num_rows: int) -> None:
        """Moves to more slots or rows; what is kept of nodes stays."""
        self.x = grown(self.x, num_slots, num_rows)
        self.dt = grown(self.dt, num_slots, num_rows)
        self.B = grown(self.B, num_slots, num_rows)

    def clear(self, slot: int) -> None:
        """Forgets the nodes of a text."""
        for rows in (self.x, self.dt, self.B):
            rows[:, slot].zero_()

    def extend(
        self,
        kernels: SsmKernels,
        layer: int,
        selected: Selected,
        committed: Float[Tensor, " slots *state_axes"],
        new: TreeRows,
    ) -> Float[Tensor, " trees new *x_axes"]:
        """Runs the new nodes of some trees through a layer's recurrence; returns the outputs."""
        x, dt, B = self.x[layer], self.dt[layer], self.B[layer]
        write_rows(x, new, selected.x)
        write_rows(dt, new, selected.dt)
        write_rows(B, new, selected.B)
        return kernels.extend_sums(x, dt, selected.A, B, selected.C, selected.D, committed, new)

    def commit(
        self,
        slot: int,
        path: Sequence[int],
        committed: Float[Tensor, " layers *state_axes"],
        commit_sums: CommitSums,
    ) -> None:
        """Moves the state of a text to the end of a path, in all layers."""
        x, dt, B = (_chosen(rows[:, slot], path) for rows in (self.x, self.dt, self.B))
        commit_sums(x, dt, B, committed)


class ReplayedPaths(PathSums):
    """Keeps the inputs of every node, and makes the states of a tree again wherever it is run.

    The states of one head or layer at a time are enough. A node's output has the bits that stepping
    gives it, whatever the tree; a kernel that has no such form takes the sums.
    """


@on_one_thread
def _chosen(
    rows: Float[Tensor, " layers nodes *axes"], nodes: Sequence[int]
) -> Float[Tensor, " layers chosen *axes"]:
    return rows[:, sent(nodes, rows.device)]


Branching = StateCopies | PathSums

BranchingKind = type[StateCopies] | type[PathSums] | type[ReplayedPaths]
"""How the state of a network is to branch."""


def write_rows(
    rows: Float[Tensor, " slots rows *axes"],
    new: TreeRows,
    values: Float[Tensor, " trees new *axes"],
) -> None:
    """Writes what one layer keeps of the new nodes of some trees."""
    rows[new.slots[:, None], new.rows] = values.to(rows.dtype)


@on_one_thread
@torch.inference_mode(mode=False)
def grown(tensor: Float[Tensor, " layers *axes"], *sizes: int) -> Float[Tensor, " layers *larger"]:
    """Returns a copy in a tensor whose first axes after the layers have at least these sizes."""
    old = tensor.shape[1 : 1 + len(sizes)]
    enough = map(max, old, sizes)
    larger = tensor.new_zeros(len(tensor), *enough, *tensor.shape[1 + len(sizes) :])
    larger[(slice(None), *map(slice, old))] = tensor
    return larger


def bytes_per_node(rows: Float[Tensor, " layers slots rows *axes"]) -> int:
    """Returns the bytes that one node takes in all layers."""
    return len(rows) * prod(rows.shape[3:]) * rows.element_size()
