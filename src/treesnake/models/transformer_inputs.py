"""What a pass of our decoder is told about its texts, in tensors of a few sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from treesnake.models.cuda_graphs import PackedInputs
from treesnake.models.transformer_pass import NewNodes
from treesnake.states.tree_layout import round_up

SMALLEST_ROWS = 256
"""Rows of the cache that attention reads at least."""


@dataclass(frozen=True)
class Size:
    """How many slots a pass has, and how many nodes, nodes of the whole tree and rows each slot."""

    slots: int
    nodes: int
    tree_nodes: int
    rows: int

    @classmethod
    def fitting(cls, parts: Sequence[NewNodes], num_slots: int) -> "Size":
        """Returns the size for some texts: one of few, less than twice the largest of each."""
        trees = [part.ancestor_mask.shape[1] for part in parts]
        needed = max(part.cache.length + tree for part, tree in zip(parts, trees, strict=True))
        return cls(
            num_slots,
            round_up(max(len(part.token_ids) for part in parts)),
            round_up(max(trees)),
            min(max(round_up(needed), SMALLEST_ROWS), parts[0].cache.capacity),
        )


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a pass is told about each of its slots.

    Nodes that only fill up see the first node of the tree and write to the spare row of their slot.

    Attributes:
        slots: their numbers in the bank.
        token_ids: the new nodes' tokens.
        mask: the nodes of the tree that each of them sees.
        cache_rows: the row that each of them writes.
        lengths: the committed tokens.
    """

    slots: Int[Tensor, " slots"]
    token_ids: Int[Tensor, "slots nodes"]
    mask: Bool[Tensor, "slots nodes tree_nodes"]
    cache_rows: Int[Tensor, "slots nodes"]
    lengths: Int[Tensor, " slots"]

    @classmethod
    def of(cls, parts: Sequence[NewNodes], slots: Sequence[int], size: Size) -> "Inputs":
        """Returns the inputs of a pass over these slots, on the host; not all need have a part."""
        spare_row = parts[0].cache.capacity
        inputs = cls(
            slots=torch.tensor(slots),
            token_ids=torch.zeros(size.slots, size.nodes, dtype=torch.int64),
            mask=torch.zeros(size.slots, size.nodes, size.tree_nodes, dtype=torch.bool),
            cache_rows=torch.full((size.slots, size.nodes), spare_row),
            lengths=torch.zeros(size.slots, dtype=torch.int64),
        )
        inputs.mask[:, :, 0] = True
        for part in parts:
            inputs._put(part, slots.index(part.cache.slot))
        return inputs

    def _put(self, part: NewNodes, index: int) -> None:
        nodes, tree_nodes = part.ancestor_mask.shape
        end = part.cache.length + tree_nodes
        self.token_ids[index, :nodes] = part.token_ids
        self.mask[index, :nodes, :tree_nodes] = part.ancestor_mask
        self.cache_rows[index, :nodes] = torch.arange(end - nodes, end)
        self.lengths[index] = part.cache.length

    @property
    def positions(self) -> Int[Tensor, "slots nodes"]:
        """Where the nodes are in their texts: behind as many tokens as each of them sees."""
        return self.lengths[:, None] + self.mask.sum(2) - 1

    def copied_to(self, device: torch.device) -> "Inputs":
        """Returns a copy on a device, in one block of memory."""
        return Inputs(**PackedInputs.packed(vars(self)).copied_to(device).tensors)
