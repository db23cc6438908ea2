"""Which rows of a cache the nodes of a tree may look at, as models want to be told."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
        self, queries: Int[Tensor, " nodes"], keys: Int[Tensor, " rows"]
    ) -> Bool[Tensor, "nodes rows"] | None:
        """Returns which positions of keys are near enough to those of queries; None means all."""
        if self.locality is Locality.WINDOW:
            return queries[:, None] - keys < self.size
        if self.locality is Locality.CHUNK:
            return queries[:, None] // self.size == keys // self.size
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
    mask = torch.zeros(visible.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[None, None]
