"""Two ways to let a recurrent state branch: keep every node's state, or every node's inputs.

Both give the same outputs and the same committed states. *State copies* (Choi et al. 2025) cost a
state for each node and the work of plain stepping. *Path sums* cost a node's inputs only, a
hundredth of that for Mamba-2, and work that grows with the depth of the tree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.dispatch import SsmKernels
from treesnake.states.tree_layout import TreeLayout
from treesnake.threads import on_one_thread


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

    def rows(self, begin: int, end: int) -> "Selected":
        """Returns the part of these rows."""
        rows = slice(begin, end)
        return replace(self, x=self.x[rows], dt=self.dt[rows], B=self.B[rows], C=self.C[rows])


CommitSums = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
"""`SsmKernels.commit_sums` in one of its forms: moves states along a path, in place."""


class StateCopies:
    """Keeps the recurrent state after every node; a child starts from its parent's.

    Like every way to branch it is made of the state's axes, each layer's A, which says where
    tensors live, and the kernel that moves states along the inputs of a path.

    Source: Mamba Drafters (Choi et al. 2025), "batch-wise state caching".
    """

    def __init__(
        self, shape: StateShape, A: Float[Tensor, " layers *a_axes"], commit_sums: CommitSums
    ) -> None:
        self.states = A.new_empty(shape.num_layers, 0, *shape.state)

    @property
    def num_bytes(self) -> int:
        """The bytes that are held now."""
        return self.states.nbytes

    def reserve(self, num_nodes: int) -> None:
        """Makes room for a tree of this many nodes."""
        self.states = with_room(self.states, num_nodes)

    def extend(
        self,
        kernels: SsmKernels,
        layer: int,
        selected: Selected,
        committed: Float[Tensor, "*state_axes"],
        layout: TreeLayout,
    ) -> Float[Tensor, " new *x_axes"]:
        """Runs the newest nodes through one layer's recurrence and returns their outputs."""
        states = self.states[layer, : len(layout)]
        return kernels.extend_copies(
            selected.x,
            selected.dt,
            selected.A,
            selected.B,
            selected.C,
            selected.D,
            committed,
            states,
            layout.parents,
        )

    @on_one_thread
    def commit(self, path: Sequence[int], committed: Float[Tensor, " layers *state_axes"]) -> None:
        """Moves the committed state of all layers to the end of a path."""
        committed.copy_(self.states[:, path[-1]])


class PathSums:
    """Keeps the inputs of every node and no state but the committed one.

    Source: the closed form of STree (Wu et al. 2025), here grown level by level.
    """

    def __init__(
        self, shape: StateShape, A: Float[Tensor, " layers *a_axes"], commit_sums: CommitSums
    ) -> None:
        self._commit_sums = commit_sums
        self._A = A
        self.x = A.new_empty(shape.num_layers, 0, *shape.x)
        self.dt = A.new_empty(shape.num_layers, 0, *shape.dt)
        self.B = A.new_empty(shape.num_layers, 0, *shape.B)

    @property
    def num_bytes(self) -> int:
        """The bytes that are held now."""
        return self.x.nbytes + self.dt.nbytes + self.B.nbytes

    def reserve(self, num_nodes: int) -> None:
        """Makes room for a tree of this many nodes."""
        self.x = with_room(self.x, num_nodes)
        self.dt = with_room(self.dt, num_nodes)
        self.B = with_room(self.B, num_nodes)

    def extend(
        self,
        kernels: SsmKernels,
        layer: int,
        selected: Selected,
        committed: Float[Tensor, "*state_axes"],
        layout: TreeLayout,
    ) -> Float[Tensor, " new *x_axes"]:
        """Runs the newest nodes through one layer's recurrence and returns their outputs."""
        num_nodes = len(layout)
        newest = slice(num_nodes - selected.x.shape[0], num_nodes)
        x, dt, B = self.x[layer], self.dt[layer], self.B[layer]
        x[newest], dt[newest], B[newest] = selected.x, selected.dt, selected.B
        return kernels.extend_sums(
            x[:num_nodes],
            dt[:num_nodes],
            selected.A,
            B[:num_nodes],
            selected.C,
            selected.D,
            committed,
            layout.ancestor_mask,
        )

    def commit(self, path: Sequence[int], committed: Float[Tensor, " layers *state_axes"]) -> None:
        """Moves the committed state of all layers to the end of a path."""
        x, dt, B = (_chosen(rows, path) for rows in (self.x, self.dt, self.B))
        self._commit_sums(x, dt, self._A, B, committed)


@on_one_thread
def _chosen(
    rows: Float[Tensor, " layers nodes *axes"], nodes: Sequence[int]
) -> Float[Tensor, " layers chosen *axes"]:
    return rows[:, list(nodes)]


Branching = StateCopies | PathSums

BranchingKind = type[StateCopies] | type[PathSums]
"""How the state of a network is to branch."""


@on_one_thread
def with_room(
    rows: Float[Tensor, " layers capacity *axes"], num_nodes: int
) -> Float[Tensor, " layers larger_capacity *axes"]:
    """Returns `rows`, moved to a buffer of twice the size if it cannot hold so many nodes."""
    capacity = rows.shape[1]
    if num_nodes <= capacity:
        return rows
    larger = rows.new_empty(rows.shape[0], max(num_nodes, 2 * capacity), *rows.shape[2:])
    larger[:, :capacity] = rows
    return larger
