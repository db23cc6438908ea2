"""Attention of the nodes of a token tree over a cache: the text, then the tree."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def seen_rows(
    ancestor_mask: Bool[Tensor, "nodes tree_nodes"], length: int, window: int | None = None
) -> Bool[Tensor, "nodes rows"]:
    """Says which rows of the cache each node sees: the text and its ancestors.

    With a window, it sees no more than so many positions, its own included.
    """
    num_nodes = len(ancestor_mask)
    text_mask = torch.ones(num_nodes, length, dtype=torch.bool, device=ancestor_mask.device)
    seen = torch.cat([text_mask, ancestor_mask], dim=1)
    if window is None:
        return seen
    positions = seen.cumsum(1)
    return seen & (positions > positions[:, -1:] - window)


def tree_attention(
    queries: Float[Tensor, "nodes heads head_dim"],
    keys: Float[Tensor, "kv_heads rows head_dim"],
    values: Float[Tensor, "kv_heads rows head_dim"],
    ancestor_mask: Bool[Tensor, "nodes tree_nodes"],
    scale: float,
    window: int | None = None,
) -> Float[Tensor, "nodes heads head_dim"]:
    """Mixes the values of the rows that each node sees, in float32.

    The rows are those of a text and then of a tree, of which the nodes at hand are the last.
    Consecutive heads share keys and values.
    """
    seen = seen_rows(ancestor_mask, keys.shape[1] - ancestor_mask.shape[1], window)
    keys, values = keys.float(), values.float()
    grouped = queries.unflatten(1, (len(keys), -1))
    scores = torch.einsum("nkgd,krd->nkgr", grouped, keys) * scale
    weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    return torch.einsum("nkgr,krd->nkgd", weights, values).flatten(1, 2)
