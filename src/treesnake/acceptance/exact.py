"""The rule for each draft: the strongest one that is exact for it."""

from treesnake.acceptance.block import block
from treesnake.acceptance.coupled import coupled
from treesnake.acceptance.greedy import greedy
from treesnake.acceptance.traversal import traversal
from treesnake.draft import Draft
from treesnake.outcome import Acceptance
from treesnake.protocols import AcceptanceRule
from treesnake.sampling import Distributions, Rng, SamplingParams


def exact(draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
    """Accepts any draft by the rule that is exact for it and accepts the most.

    Chosen trees go to `coupled`, sampled chains to `block`, all others to `traversal`.
    """
    if draft.is_chosen:
        return coupled(draft, target, rng)
    if draft.is_sampled and draft.tree.is_chain:
        return block(draft, target, rng)
    return traversal(draft, target, rng)


def rule_for(params: SamplingParams) -> AcceptanceRule:
    """Returns the default rule: `greedy` at temperature 0, `exact` above."""
    return greedy if params.is_greedy else exact
