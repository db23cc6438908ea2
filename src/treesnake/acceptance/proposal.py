"""The distribution that a drafted token stands for."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.acceptance.checks import check_drawn
from treesnake.draft import Draft


def proposal(
    draft: Draft,
    child: int,
    siblings: Sequence[int],
    target_probs: Float[Tensor, "nodes vocab"],
) -> Float[Tensor, " vocab"]:
    """Returns the law of a child's token, given the tokens of its earlier siblings.

    That of a sampled child is its parent's row of `draft_probs` without those tokens, normalized;
    that of a chosen child is all on its own token. Of `target_probs` the device and the vocabulary
    matter alone.

    Raises:
        LosslessnessError: if the child cannot have been drawn from that.
    """
    token = draft.tree.tokens[child]
    if not draft.sampled_mask[child]:
        point = torch.zeros_like(target_probs[0])
        point[token] = 1
        return point
    assert draft.draft_probs is not None
    weights = draft.draft_probs[draft.tree.parents[child]].clone()
    weights[list(siblings)] = 0
    check_drawn(float(weights[token]), token)
    return weights / weights.sum()
