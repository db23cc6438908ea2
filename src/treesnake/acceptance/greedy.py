"""Greedy acceptance: follow the target's most probable tokens as far as the tree has them."""

from jaxtyping import Float
from torch import Tensor

from treesnake.acceptance.checks import check_vocabulary
from treesnake.acceptance.following import follow_target
from treesnake.draft import Draft
from treesnake.errors import LosslessnessError
from treesnake.outcome import Acceptance
from treesnake.sampling import Rng, largest


def greedy(draft: Draft, target_probs: Float[Tensor, "nodes vocab"], rng: Rng) -> Acceptance:
    """Accepts the path of the target's most probable tokens; exact for any draft at temperature 0.

    Raises:
        LosslessnessError: if the target's distributions are not single tokens.
    """
    check_vocabulary(draft, target_probs)
    best = largest(target_probs, 1)
    if any(prob != 1 for (prob,) in best.values.tolist()):
        raise LosslessnessError(
            "the greedy rule is exact at temperature 0 only; accept with exact above it"
        )
    return follow_target(draft.tree, best.indices[:, 0].tolist().__getitem__)
