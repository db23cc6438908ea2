"""What the engines of the native decoder run: new nodes of the trees of one text or of several."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from treesnake.models.transformer_cache import TransformerCache


@dataclass(frozen=True, eq=False)
class NewNodes:
    """The newest nodes of one text's tree, on the host.

    Attributes:
        token_ids: their tokens.
        ancestor_mask: which nodes of the whole tree each of them sees, itself included; the new
            nodes are the last ones.
        cache: the text's keys and values, with room for the whole tree.
        num_logits: the last nodes, of which logits are wanted.
    """

    token_ids: Int[Tensor, " nodes"]
    ancestor_mask: Bool[Tensor, "nodes tree_nodes"]
    cache: TransformerCache
    num_logits: int

    @classmethod
    def of_text(
        cls, token_ids: Int[Tensor, " nodes"], cache: TransformerCache, num_logits: int
    ) -> "NewNodes":
        """Returns the next tokens of the text itself, each of which sees those before it."""
        mask = torch.ones(len(token_ids), len(token_ids), dtype=torch.bool).tril()
        return cls(token_ids, mask, cache, num_logits)
