"""Acceptance for any tree: let the target draw, and see whether the tree has that token."""

from jaxtyping import Float
from torch import Tensor

from treesnake.acceptance.checks import check_vocabulary
from treesnake.acceptance.following import follow_target
from treesnake.draft import Draft
from treesnake.outcome import Acceptance
from treesnake.sampling import Rng


def point_mass(draft: Draft, target_probs: Float[Tensor, "nodes vocab"], rng: Rng) -> Acceptance:
    """Draws from the target at each node and follows the child that has the token, if one does.

    Exact for any tree, however it was found and pruned: what the target draws does not depend on
    it. For chosen nodes, whose draft is a point mass, rejection sampling comes down to this; for
    sampled ones there are rules that accept more.
    """
    check_vocabulary(draft, target_probs)
    return follow_target(draft.tree, lambda node: rng.draw(target_probs[node]))
