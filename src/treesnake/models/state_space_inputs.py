"""What a pass over trees of a state space network is told, in tensors of a few sizes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.kernels.tree_rows import TreeRows
from treesnake.models.state_space_state import GrownTree
from treesnake.states.ssm import SsmBank, SsmState
from treesnake.states.tree_layout import RowsSize, tree_rows


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

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "TreeInputs":
        """Returns the inputs whose `tensors` these are, or copies of them."""
        rows = {name: tensor for name, tensor in tensors.items() if name != "token_ids"}
        return cls(tensors["token_ids"], TreeRows(**rows))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {"token_ids": self.token_ids, **vars(self.rows)}


Step = Callable[[TreeInputs, SsmBank], Float[Tensor, "trees new vocab"]]
"""Runs new nodes, on tensors alone and without waiting for the device."""
