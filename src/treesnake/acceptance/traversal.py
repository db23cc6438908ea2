"""Traversal verification: whole paths of a tree, judged from the leaves to the anchor."""

from jaxtyping import Float
from torch import Tensor

from treesnake.acceptance.checks import check_vocabulary
from treesnake.acceptance.proposal import proposal
from treesnake.draft import Draft
from treesnake.outcome import Acceptance
from treesnake.sampling import Distributions, Rng
from treesnake.threads import on_one_thread


@on_one_thread
def traversal(draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
    """Accepts the first path that passes as a whole, deepest first (Weng et al. 2025, Alg. 2).

    Each node has a weight: 1 for the anchor, min(1, weight * remaining / proposal) for a child of a
    node with `weight`. A node's children are tried in the order of the draws, each with everything
    below it; after each that fails the node keeps mass m = sum(max(weight * remaining - proposal,
    0)), its weight becomes m / (m + 1 - weight), and the terms of that sum, normalized, remain.
    After its last child a node passes with its weight, and a token is drawn from what remains.

    Exact for the same drafts as `tree_rejection`. Claim: a node with some weight and some remaining
    distribution ends in an acceptance at or below it with probability weight, and then the token
    after it has the remaining distribution, whatever was drafted below. A leaf does so plainly.
    For another node let x be drawn from the first proposal. By the claim for x,

        an acceptance through x has probability proposal(x) * weight of x, which is
        min(proposal(x), weight * remaining(x)), and failing the probability 1 - weight + m;

    by the claim for the node without this child, with its new weight, that failure is followed by x
    after the node with probability max(weight * remaining(x) - proposal(x), 0). The two add up to
    weight * remaining(x). What the later siblings are drawn from may depend on the child that
    failed, for the claim holds whatever it is. The anchor, with weight 1, is always accepted.

    On a chain it is `block`, which never accepts fewer tokens than `rejection`. On trees it accepts
    more than `tree_rejection` on average, though on rare ones less (by 0.006 tokens at worst in a
    numerical search). It may visit every node of the tree where `tree_rejection` follows one path:
    a few operations on a row of the vocabulary for each.

    Raises:
        LosslessnessError: if a node cannot have been drawn as the draft says.
    """
    check_vocabulary(draft, target)
    target_probs = target.probs
    acceptance = _visit(draft, target_probs, rng, 0, 1.0)
    assert acceptance is not None, "the anchor has weight 1"
    return acceptance


def _visit(
    draft: Draft,
    target_probs: Float[Tensor, "nodes vocab"],
    rng: Rng,
    node: int,
    weight: float,
) -> Acceptance | None:
    """Returns an acceptance at or below a node, or None if all that is there fails."""
    tree = draft.tree
    remaining = target_probs[node]
    siblings: list[int] = []
    for child in tree.children[node]:
        if weight == 0:
            break
        token = tree.tokens[child]
        proposed = proposal(draft, child, siblings, target_probs)
        ratio = weight * float(remaining[token]) / float(proposed[token])
        acceptance = _visit(draft, target_probs, rng, child, min(1.0, ratio))
        if acceptance:
            return acceptance
        weight, remaining = _after_failure(weight, remaining, proposed)
        siblings.append(token)
    return Acceptance(tree.path(node), rng.draw(remaining)) if rng.coin(weight) else None


def _after_failure(
    weight: float, remaining: Float[Tensor, " vocab"], proposed: Float[Tensor, " vocab"]
) -> tuple[float, Float[Tensor, " vocab"]]:
    """Returns a node's weight and remaining distribution once a child has failed."""
    surplus = (weight * remaining - proposed).clamp(min=0)
    mass = float(surplus.sum())
    if mass == 0:  # with weight 1 the two are equal but for rounding, and failing had no chance
        return float(weight == 1), remaining
    return mass / (mass + 1 - weight), surplus / mass
