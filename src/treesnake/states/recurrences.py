"""Recurrences of mixers, as a layer's memory runs them: over a text, and over a token tree.

A recurrence is what a layer does with its inputs after the convolution. What a token brings is in
two parts: what moves the state (`moving`, rows of several tensors) and what reads it (`reading`).
Of the nodes of a tree only the first part is kept; the state is never copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.dispatch import delta_kernels, ssd_kernels, ssm_kernels
from treesnake.states.grown_nodes import GrownNodes

Rows = tuple[Float[Tensor, "..."], ...]
"""Tensors with a row for each token."""


@runtime_checkable
class Recurrence(Protocol):
    """One layer's recurrence, with the numbers that are the layer's own."""

    def zero_state(self, moving: Rows) -> Float[Tensor, "..."]:
        """Returns the state before any token, in the shape that fits the inputs."""
        ...

    def scan(
        self,
        moving: Rows,
        reading: Float[Tensor, "tokens ..."],
        state: Float[Tensor, "..."],
    ) -> tuple[Float[Tensor, "tokens ..."], Float[Tensor, "..."]]:
        """Returns the outputs of a text and the state after it."""
        ...

    def extend(
        self,
        moving: Rows,
        reading: Float[Tensor, "new ..."],
        state: Float[Tensor, "..."],
        grown: GrownNodes,
    ) -> Float[Tensor, "new ..."]:
        """Returns the outputs of new nodes; `moving` has the rows of all nodes."""
        ...

    def commit(self, moving: Rows, state: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Returns the state moved along a path, in closed form."""
        ...


@dataclass(frozen=True, eq=False)
class SelectiveScan:
    """The recurrence of Mamba-1: x, dt and B move the state, C reads it.

    The nodes of a tree are run level by level. Their states exist only meanwhile, in one layer.
    """

    A: Float[Tensor, "channels state_dim"]
    D: Float[Tensor, " channels"]

    def zero_state(self, moving: Rows) -> Float[Tensor, "channels state_dim"]:
        """Returns zeros."""
        return torch.zeros_like(self.A, dtype=torch.float32)

    def scan(
        self,
        moving: Rows,
        reading: Float[Tensor, "tokens state_dim"],
        state: Float[Tensor, "channels state_dim"],
    ) -> tuple[Float[Tensor, "tokens channels"], Float[Tensor, "channels state_dim"]]:
        """Returns the outputs of a text and the state after it."""
        x, dt, B = moving
        return ssm_kernels(x.device).scan(x, dt, self.A, B, reading, self.D, state)

    def extend(
        self,
        moving: Rows,
        reading: Float[Tensor, "new state_dim"],
        state: Float[Tensor, "channels state_dim"],
        grown: GrownNodes,
    ) -> Float[Tensor, "new channels"]:
        """Returns the outputs of new nodes; the states of earlier ones are made again."""
        x, dt, B = moving
        unread = reading.new_zeros(grown.num_before, reading.shape[-1])
        C = torch.cat([unread, reading])
        node_states = state.new_empty(1, len(x), *state.shape)
        y = ssm_kernels(x.device).extend_copies(
            x[None],
            dt[None],
            self.A,
            B[None],
            C[None],
            self.D,
            state[None],
            node_states,
            grown.all_rows(x.device),
        )
        return y[0, grown.num_before :]

    def commit(
        self, moving: Rows, state: Float[Tensor, "channels state_dim"]
    ) -> Float[Tensor, "channels state_dim"]:
        """Returns the state moved along a path, in closed form."""
        x, dt, B = moving
        moved = state[None].clone()
        ssm_kernels(x.device).commit_sums(x[None], dt[None], self.A[None], B[None], moved)
        return moved[0]


@dataclass(frozen=True, eq=False)
class StateSpaceDual:
    """The recurrence of Mamba-2: x, dt and B move the state, C reads it."""

    A: Float[Tensor, " heads"]
    D: Float[Tensor, " heads"]

    def zero_state(self, moving: Rows) -> Float[Tensor, "heads head_dim state_dim"]:
        """Returns zeros."""
        x, _, B = moving
        return x.new_zeros(*x.shape[1:], B.shape[-1], dtype=torch.float32)

    def scan(
        self,
        moving: Rows,
        reading: Float[Tensor, "tokens groups state_dim"],
        state: Float[Tensor, "heads head_dim state_dim"],
    ) -> tuple[Float[Tensor, "tokens heads head_dim"], Float[Tensor, "heads head_dim state_dim"]]:
        """Returns the outputs of a text and the state after it."""
        x, dt, B = moving
        return ssd_kernels(x.device).scan(x, dt, self.A, B, reading, self.D, state)

    def extend(
        self,
        moving: Rows,
        reading: Float[Tensor, "new groups state_dim"],
        state: Float[Tensor, "heads head_dim state_dim"],
        grown: GrownNodes,
    ) -> Float[Tensor, "new heads head_dim"]:
        """Returns the outputs of new nodes, from the inputs of their ancestors."""
        x, dt, B = moving
        rows = grown.rows(1, x.device)
        return ssd_kernels(x.device).extend_sums(
            x[None], dt[None], self.A, B[None], reading[None], self.D, state[None], rows
        )[0]

    def commit(
        self, moving: Rows, state: Float[Tensor, "heads head_dim state_dim"]
    ) -> Float[Tensor, "heads head_dim state_dim"]:
        """Returns the state moved along a path, in closed form."""
        x, dt, B = moving
        moved = state[None].clone()
        ssd_kernels(x.device).commit_sums(x[None], dt[None], self.A[None], B[None], moved)
        return moved[0]


@dataclass(frozen=True, eq=False)
class GatedDelta:
    """The gated delta rule: keys, values, log decays and betas move the state, queries read it."""

    def zero_state(self, moving: Rows) -> Float[Tensor, "heads key_dim value_dim"]:
        """Returns zeros."""
        key, value, _, _ = moving
        return key.new_zeros(*key.shape[1:], value.shape[-1], dtype=torch.float32)

    def scan(
        self,
        moving: Rows,
        reading: Float[Tensor, "tokens heads key_dim"],
        state: Float[Tensor, "heads key_dim value_dim"],
    ) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "heads key_dim value_dim"]]:
        """Returns the outputs of a text and the state after it."""
        key, value, log_decay, beta = moving
        return delta_kernels(key.device).scan(reading, key, value, log_decay, beta, state)

    def extend(
        self,
        moving: Rows,
        reading: Float[Tensor, "new heads key_dim"],
        state: Float[Tensor, "heads key_dim value_dim"],
        grown: GrownNodes,
    ) -> Float[Tensor, "new heads value_dim"]:
        """Returns the outputs of new nodes, from the inputs of all nodes."""
        key, value, log_decay, beta = moving
        mask = grown.layout(reading.device).ancestor_mask
        return delta_kernels(key.device).extend_sums(
            reading, key, value, log_decay, beta, mask, state
        )

    def commit(
        self, moving: Rows, state: Float[Tensor, "heads key_dim value_dim"]
    ) -> Float[Tensor, "heads key_dim value_dim"]:
        """Returns the state moved along a path, in closed form."""
        key, value, log_decay, beta = moving
        return delta_kernels(key.device).commit_sums(key, value, log_decay, beta, state)


def chosen(moving: Rows, path: Sequence[int]) -> Rows:
    """Returns the rows of a path."""
    return tuple(rows[list(path)] for rows in moving)
