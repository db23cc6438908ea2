"""Acceptance for chosen trees: let the target draw, and see whether the tree has that token."""

from jaxtyping import Float
from torch import Tensor

from treesnake.acceptance.checks import check_vocabulary
from treesnake.acceptance.following import follow_target
from treesnake.draft import Draft
from treesnake.errors import LosslessnessError
from treesnake.outcome import Acceptance
from treesnake.sampling import Rng


def point_mass(draft: Draft, target_probs: Float[Tensor, "nodes vocab"], rng: Rng) -> Acceptance:
    """Draws from the target at each node and follows the child that has the token, if one does.

    The draft of a node's children is a point mass on what was chosen, for which rejection sampling
    comes down to this. Exact however the tree was chosen and pruned, as long as chance had no part.

    Raises:
        LosslessnessError: if a node of the tree was sampled.
    """
    check_vocabulary(draft, target_probs)
    if not draft.is_chosen:
        raise LosslessnessError(
            "point_mass is exact for chosen tokens only; accept sampled ones with tree_rejection"
        )
    return follow_target(draft.tree, lambda node: rng.draw(target_probs[node]))
