"""Speculative sampling on a chain: token by token (Leviathan et al. 2023; Chen et al. 2023)."""

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.acceptance.checks import (
    check_drawn,
    check_sampled_chain,
    check_vocabulary,
)
from treesnake.acceptance.residual import residual
from treesnake.draft import Draft
from treesnake.outcome import Acceptance
from treesnake.sampling import Distributions, Rng
from treesnake.threads import on_one_thread


@on_one_thread
def rejection(draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
    """Accepts drafted tokens one after the other with probability min(1, target / draft).

    After the first rejection the token is drawn from the residual max(target - draft, 0), and
    after none from the target (Leviathan et al. 2023, Alg. 1).

    Raises:
        LosslessnessError: if the draft is not a chain of sampled tokens.
    """
    check_vocabulary(draft, target)
    target_probs = target.probs
    check_sampled_chain(draft, "rejection")
    draft_probs = draft.draft_probs
    last = draft.tree.num_drafted
    for node, ratio in enumerate(likelihood_ratios(draft, target_probs)):
        if not rng.coin(ratio):
            assert draft_probs is not None
            recovered = rng.draw(residual(target_probs[node], draft_probs[node]))
            return Acceptance(tuple(range(node + 1)), recovered)
    return Acceptance(tuple(range(last + 1)), rng.draw(target_probs[last]))


def likelihood_ratios(draft: Draft, target_probs: Float[Tensor, "nodes vocab"]) -> list[float]:
    """Returns target / draft probability of each drafted token of a chain, in one transfer."""
    num_drafted = draft.tree.num_drafted
    if draft.draft_probs is None or num_drafted == 0:
        return []
    tokens = draft.tree.tokens[1:]
    columns = torch.tensor(tokens, device=target_probs.device)[:, None]
    pairs = torch.stack(
        [
            probs[:num_drafted].gather(1, columns)[:, 0]
            for probs in (target_probs, draft.draft_probs)
        ]
    ).tolist()
    for token, probability in zip(tokens, pairs[1], strict=True):
        check_drawn(probability, token)
    return [target / draft for target, draft in zip(*pairs, strict=True)]
