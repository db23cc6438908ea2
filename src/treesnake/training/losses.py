"""How far a drafter's distribution is from the target's, over outcomes that both can have.

Of stored answers only the target's most probable tokens are known. The outcomes are then these
tokens and "any other", whose probability is what is left over: a divergence over them is exact for
what is known, and never larger than that over all tokens. Tokens that the drafter cannot say are
no outcome: their probability neither draws the others up nor down.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.training.training_recipe import Divergence

NEVER = -1e30
"""The log probability of what cannot happen: finite, so that 0 times it is 0, gradients too."""

LEAST_LOG_PROB = -30.0
"""What the reverse divergence takes for the target's rarest tokens, so that it stays finite."""

LEAST_LEFT_OVER = 1e-6
"""Of probability; stored numbers are rounded, and may sum to more than 1."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Log probabilities of the same outcomes; the target's probabilities may sum to less than 1."""

    target: Float[Tensor, "positions outcomes"]
    drafter: Float[Tensor, "positions outcomes"]


def stored_outcomes(
    logits: Float[Tensor, "positions drafted"],
    columns: Int[Tensor, "positions top"],
    target_log_probs: Float[Tensor, "positions top"],
) -> Outcomes:
    """Makes outcomes of the target's most probable tokens and all others together.

    Args:
        logits: the drafter's, of the tokens that it can say.
        columns: where the most probable tokens are in them; one past the end for those that it
            cannot say.
        target_log_probs: of these tokens.
    """
    padded = F.pad(logits, (0, 1), value=NEVER)
    top = padded.gather(-1, columns)
    rest = padded.scatter(-1, columns, NEVER).logsumexp(-1, keepdim=True)
    total = torch.logaddexp(top.logsumexp(-1, keepdim=True), rest)
    left_over = (1 - target_log_probs.exp().sum(-1, keepdim=True)).clamp_min(LEAST_LEFT_OVER).log()
    known = target_log_probs.masked_fill(columns == logits.shape[-1], NEVER)
    return Outcomes(torch.cat([known, left_over], -1), torch.cat([top, rest], -1) - total)


def all_outcomes(
    logits: Float[Tensor, "positions drafted"], target_log_probs: Float[Tensor, "positions drafted"]
) -> Outcomes:
    """Makes an outcome of each token that the drafter can say."""
    return Outcomes(target_log_probs, logits.log_softmax(-1))


def divergence(kind: Divergence, outcomes: Outcomes) -> Float[Tensor, " positions"]:
    """Returns the divergence at each position, in nats; total variation goes from 0 to 1."""
    target, drafter = outcomes.target, outcomes.drafter
    if kind == "forward_kl":
        return (target.exp() * (target - drafter)).sum(-1)
    if kind == "reverse_kl":
        return (drafter.exp() * (drafter - target.clamp_min(LEAST_LOG_PROB))).sum(-1)
    return (target.exp() - drafter.exp()).abs().sum(-1) / 2


def cross_entropy(
    logits: Float[Tensor, "positions drafted"], columns: Int[Tensor, " positions"]
) -> Float[Tensor, " positions"]:
    """Returns the cross-entropy of some tokens in nats; 0 for those that cannot be said."""
    return F.cross_entropy(logits, columns, ignore_index=logits.shape[-1], reduction="none")
