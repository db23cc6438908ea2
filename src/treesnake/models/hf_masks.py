"""Which rows of a cache the nodes of a tree may look at, as models want to be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from treesnake.states.tree_layout import TreeLayout


class Locality(StrEnum):
    """Three ways in which a layer limits how far back its nodes look."""

    FULL = "full"
    WINDOW = "window"
    CHUNK = "chunk"


@dataclass(frozen=True)
class Span:
    """How far back a layer looks.

    Attributes:
        locality: no limit; the last `size` positions, the node's own included; or those of the
            node's own chunk, where chunks of `size` positions begin at the start of the text.
        size: positions.
    """

    locality: Locality = Locality.FULL
    size: int = 0

    def covers(
        self, queries: Int[Tensor, "*texts nodes"], keys: Int[Tensor, "*texts rows"]
    ) -> Bool[Tensor, "*texts nodes rows"] | None:
        """Returns which positions of keys are near enough to those of queries; None means all."""
        if self.locality is Locality.WINDOW:
            return queries[..., None] - keys[..., None, :] < self.size
        if self.locality is Locality.CHUNK:
            return queries[..., None] // self.size == keys[..., None, :] // self.size
        return None


def tree_mask(
    ancestor_mask: Bool[Tensor, "new nodes"],
    depths: Int[Tensor, " nodes"],
    num_held: int,
    span: Span,
    dtype: torch.dtype,
) -> Float[Tensor, "1 1 new rows"]:
    """Returns what to add to the attention scores of the newest nodes of a tree.

    Rows are the `num_held` tokens of the text and then all nodes. A node sees the text, its
    ancestors and itself, as far as the span goes; distances are those in its own path, not those in
    the cache. Hidden rows get the lowest number of the dtype, as in transformers.

    Args:
        ancestor_mask: for each new node, which nodes are its ancestors or itself.
        depths: of all nodes, from 0 for one that comes right after the text.
        num_held: the number of tokens in the text.
        span: how far back the layer looks.
        dtype: of the scores.
    """
    num_new, device = len(ancestor_mask), ancestor_mask.device
    held_mask = torch.ones(num_new, num_held, dtype=torch.bool, device=device)
    visible = torch.cat([held_mask, ancestor_mask], dim=1)
    positions = torch.cat([torch.arange(num_held, device=device), num_held + depths])
    near = span.covers(positions[-num_new:], positions)
    if near is not None:
        visible &= near
    return _additive(visible, dtype)[None, None]


@dataclass(frozen=True, eq=False)
class PaddedTrees:
    """The newest nodes of several trees in one rectangle, and the rows that they may see.

    What fills a text up to the longest is hidden from all. A tree with fewer new nodes is filled up
    with copies of its last one, which see what that one sees, for a softmax over nothing has no
    value.

    Attributes:
        positions: of the new nodes in their texts.
        row_positions: of the rows.
        visible: the rows of a node's text, its ancestors and itself, near or far.
    """

    positions: Int[Tensor, "texts most_new"]
    row_positions: Int[Tensor, "texts most_rows"]
    visible: Bool[Tensor, "texts most_new most_rows"]

    @classmethod
    def of(
        cls,
        trees: Sequence[TreeLayout],
        num_new: Sequence[int],
        num_held: Sequence[int],
        device: torch.device,
    ) -> "PaddedTrees":
        """Lays trees, which are in the memory of the host, side by side.

        Args:
            trees: with the new nodes, which are their last.
            num_new: for each tree the number of new nodes.
            num_held: for each tree the number of tokens in its text.
            device: of the result.
        """
        most_nodes = max(map(len, trees))
        # The last column stands for what is behind a tree, which no node sees.
        ancestors = torch.zeros(len(trees), max(num_new), most_nodes + 1, dtype=torch.bool)
        depths = torch.zeros(len(trees), most_nodes + 1, dtype=torch.int64)
        new_depths = torch.zeros(len(trees), max(num_new), dtype=torch.int64)
        for index, (tree, new) in enumerate(zip(trees, num_new, strict=True)):
            ancestors[index, :new, : len(tree)] = tree.ancestor_mask[-new:]
            ancestors[index, new:, : len(tree)] = tree.ancestor_mask[-1]
            depths[index, : len(tree)] = tree.depths
            new_depths[index, :new] = tree.depths[-new:]
            new_depths[index, new:] = tree.depths[-1]
        most_rows = max(held + len(tree) for held, tree in zip(num_held, trees, strict=True))
        held = torch.tensor(num_held, device=device)[:, None]
        rows = torch.arange(most_rows, device=device)[None]
        nodes = (rows - held).clamp(0, most_nodes)
        seen_nodes = ancestors.to(device).gather(2, nodes[:, None].expand(-1, max(num_new), -1))
        in_text = rows < held
        return cls(
            positions=held + new_depths.to(device),
            row_positions=torch.where(in_text, rows, held + depths.to(device).gather(1, nodes)),
            visible=in_text[:, None] | seen_nodes,
        )

    def mask(self, span: Span, dtype: torch.dtype) -> Float[Tensor, "texts 1 most_new most_rows"]:
        """Returns what to add to the attention scores of layers that look back so far."""
        visible = self.visible
        near = span.covers(self.positions, self.row_positions)
        if near is not None:
            visible = visible & near
        return _additive(visible, dtype)[:, None]


def _additive(
    visible: Bool[Tensor, "*texts nodes rows"], dtype: torch.dtype
) -> Float[Tensor, "*texts nodes rows"]:
    """Returns 0 for what is visible, and for the rest the lowest number of the dtype."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
