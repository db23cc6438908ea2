"""Speculative sampling on a tree, children in the order in which they were drawn."""

from jaxtyping import Float
from torch import Tensor

from treesnake.acceptance.checks import check_vocabulary
from treesnake.acceptance.proposal import proposal
from treesnake.acceptance.residual import residual
from treesnake.draft import Draft
from treesnake.outcome import Acceptance
from treesnake.sampling import Distributions, Rng
from treesnake.threads import on_one_thread


@on_one_thread
def tree_rejection(draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
    """Walks down the tree, offering each node's children one after the other.

    A child is accepted with probability min(1, remaining / proposal), where `remaining` starts as
    the target's distribution and each rejection replaces it by the normalized
    max(remaining - proposal, 0). The proposal of a sampled child is the drafter's distribution
    without its earlier siblings, that of a chosen child all on its token. If no child is accepted
    the token is drawn from what remains (SpecInfer, Miao et al. 2024; Sequoia, Chen et al. 2024).

    Exact for any mixture of sampled and chosen nodes, provided that siblings keep the order of the
    draws and that no node was dropped because of the value of a draw.

    Raises:
        LosslessnessError: if a node cannot have been drawn as the draft says.
    """
    check_vocabulary(draft, target)
    target_probs = target.probs
    path = [0]
    while True:
        child, remaining = _offer_children(draft, path[-1], target_probs, rng)
        if child is None:
            return Acceptance(tuple(path), rng.draw(remaining))
        path.append(child)


def _offer_children(
    draft: Draft, node: int, target_probs: Float[Tensor, "nodes vocab"], rng: Rng
) -> tuple[int | None, Float[Tensor, " vocab"]]:
    """Returns the accepted child or None, and the distribution left for the target's own token."""
    tree = draft.tree
    remaining = target_probs[node]
    siblings: list[int] = []
    for child in tree.children[node]:
        token = tree.tokens[child]
        proposed = proposal(draft, child, siblings, target_probs)
        if rng.coin(float(remaining[token]) / float(proposed[token])):
            return child, remaining
        remaining = residual(remaining, proposed)
        siblings.append(token)
    return None, remaining
