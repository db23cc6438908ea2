"""Acceptance for any tree: the target draws by the noise of a place, which the tree may know."""

from treesnake.acceptance.checks import check_vocabulary
from treesnake.acceptance.following import follow_target
from treesnake.draft import Draft
from treesnake.outcome import Acceptance
from treesnake.sampling import Distributions, Rng


def coupled(draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
    """Draws from the target at each node and follows the child that has the token, if one does.

    The draws depend on the place in the text and on the target alone, so the tokens are those of
    plain decoding with the same seed, whatever was drafted. Exact for any tree, however it was
    found and pruned, also by the noise itself. A drafter that draws by the same noise guesses with
    a probability of at least (1 - d) / (1 + d), where d is the distance between its distribution
    and the target's in total variation (Daliri, Musco and Suresh 2024, Theorem 1).
    """
    check_vocabulary(draft, target)
    return follow_target(draft.tree, rng.first_come(target, draft.tree.depths))
