"""Speculative sampling on a tree, children in the order in which they were drawn."""

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.acceptance.checks import check_drawn, check_vocabulary
from treesnake.acceptance.residual import residual
from treesnake.draft import Draft
from treesnake.outcome import Acceptance
from treesnake.sampling import Rng


def tree_rejection(
    draft: Draft, target_probs: Float[Tensor, "nodes vocab"], rng: Rng
) -> Acceptance:
    """Walks down the tree, offering each node's children one after the other.

    A child is accepted with probability min(1, remaining / proposal), where `remaining` starts as
    the target's distribution and each rejection replaces it by the normalized
    max(remaining - proposal, 0). The proposal of a sampled child is the drafter's distribution
    without its earlier siblings, that of a chosen child all on its token. If no child is accepted
    the token is drawn from what remains (SpecInfer, Miao et al. 2024; Sequoia, Chen et al. 2024).

    Exact for any mixture of sampled and chosen nodes, provided that siblings keep the order of the
    draws and that no node was dropped because of the value of a draw.
    """
    check_vocabulary(draft, target_probs)
    path = [0]
    while True:
        child, remaining = _offer_children(draft, path[-1], target_probs[path[-1]], rng)
        if child is None:
            return Acceptance(tuple(path), rng.draw(remaining))
        path.append(child)


def _offer_children(
    draft: Draft, node: int, target_probs: Float[Tensor, " vocab"], rng: Rng
) -> tuple[int | None, Float[Tensor, " vocab"]]:
    """Returns the accepted child or None, and the distribution left for the target's own token."""
    tree = draft.tree
    remaining = target_probs
    siblings: list[int] = []
    for child in tree.children[node]:
        token = tree.tokens[child]
        proposal = _proposal(draft, node, child, siblings, target_probs)
        probability = float(proposal[token])
        check_drawn(probability, token)
        if rng.coin(float(remaining[token]) / probability):
            return child, remaining
        remaining = residual(remaining, proposal)
        siblings.append(token)
    return None, remaining


def _proposal(
    draft: Draft,
    node: int,
    child: int,
    siblings: list[int],
    target_probs: Float[Tensor, " vocab"],
) -> Float[Tensor, " vocab"]:
    """Returns the distribution that a child was drawn from, given its earlier siblings."""
    if not draft.sampled_mask[child]:
        point = torch.zeros_like(target_probs)
        point[draft.tree.tokens[child]] = 1
        return point
    assert draft.draft_probs is not None
    proposal = draft.draft_probs[node].clone()
    proposal[siblings] = 0
    return proposal / proposal.sum()
