"""Block verification: a chain is judged as a whole (Sun et al. 2024, "Block Verification")."""

from treesnake.acceptance.checks import check_sampled_chain, check_vocabulary
from treesnake.acceptance.rejection import likelihood_ratios
from treesnake.acceptance.residual import residual
from treesnake.draft import Draft
from treesnake.outcome import Acceptance
from treesnake.sampling import Distributions, Rng
from treesnake.threads import on_one_thread


@on_one_thread
def block(draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
    """Accepts the longest prefix that passes a joint test; never fewer tokens than rejection.

    The weight of a prefix is w_i = min(1, w_{i-1} * target / draft). A prefix of length i passes
    with probability r_i / (r_i + 1 - w_i), where r_i is the mass of max(w_i * target - draft, 0)
    after it, and the whole chain with w_n. The token after the longest prefix that passed is drawn
    from its residual (Sun et al. 2024, Alg. 2).

    Raises:
        LosslessnessError: if the draft is not a chain of sampled tokens.
    """
    check_vocabulary(draft, target)
    target_probs = target.probs
    check_sampled_chain(draft, "block")
    last = draft.tree.num_drafted
    weight = 1.0
    accepted, accepted_weight = 0, 1.0
    for node, ratio in enumerate(likelihood_ratios(draft, target_probs), start=1):
        weight = min(1.0, weight * ratio)
        passes = weight
        if node < last and weight < 1:
            assert draft.draft_probs is not None
            surplus = (weight * target_probs[node] - draft.draft_probs[node]).clamp(min=0)
            mass = float(surplus.sum())
            passes = mass / (mass + 1 - weight)
        if rng.coin(passes):
            accepted, accepted_weight = node, weight
    path = tuple(range(accepted + 1))
    if accepted == last:
        return Acceptance(path, rng.draw(target_probs[last]))
    assert draft.draft_probs is not None
    weighted = accepted_weight * target_probs[accepted]
    return Acceptance(path, rng.draw(residual(weighted, draft.draft_probs[accepted])))
