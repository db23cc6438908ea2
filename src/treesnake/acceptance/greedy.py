"""Greedy acceptance: follow the target's most probable tokens as far as the tree has them."""

from treesnake.acceptance.checks import check_vocabulary
from treesnake.acceptance.following import follow_target
from treesnake.draft import Draft
from treesnake.errors import LosslessnessError
from treesnake.outcome import Acceptance
from treesnake.sampling import Distributions, Rng, first_largest


def greedy(draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
    """Accepts the path of the target's most probable tokens; exact for any draft at temperature 0.

    Raises:
        LosslessnessError: if the temperature is another.
    """
    check_vocabulary(draft, target)
    if not target.params.is_greedy:
        raise LosslessnessError(
            "the greedy rule is exact at temperature 0 only; accept with exact above it"
        )
    best = first_largest(target.logits).tolist()
    return follow_target(draft.tree, best.__getitem__)
