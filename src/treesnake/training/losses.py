"""How far a drafter's distribution is from the target's, over outcomes that both can have.

Of stored answers only the target's most probable tokens are known. The outcomes are then these
tokens and "any other", whose probability is what is left over: a divergence over them is exact for
what is known, and never larger than that over all tokens. Tokens that the drafter cannot say are
no outcome: their probability neither draws the others up nor down.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
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


@dataclass(frozen=True, eq=False)
class Drafted:
    """A drafter's logits of the tokens that it can say, and the logarithm of their sum of powers.

    Log probabilities are made of the two where they are needed, so there is no second matrix as
    wide as the vocabulary.
    """

    logits: Float[Tensor, "positions drafted"]
    total: Float[Tensor, "positions 1"]

    @classmethod
    def of(cls, logits: Float[Tensor, "positions drafted"]) -> "Drafted":
        """Takes logits."""
        return cls(logits, logits.logsumexp(-1, keepdim=True))

    def log_probs(
        self, columns: Int[Tensor, "positions chosen"]
    ) -> Float[Tensor, "positions chosen"]:
        """Returns those of some tokens.

        Args:
            columns: where they are in the logits; one past the end for those that cannot be said.
        """
        num_drafted = self.logits.shape[-1]
        chosen = self.logits.gather(-1, columns.clamp_max(num_drafted - 1)) - self.total
        return chosen.masked_fill(columns == num_drafted, NEVER)


def stored_outcomes(
    drafted: Drafted,
    columns: Int[Tensor, "positions top"],
    target_log_probs: Float[Tensor, "positions top"],
) -> Outcomes:
    """Makes outcomes of the target's most probable tokens and all others together.

    Args:
        drafted: the drafter's logits.
        columns: where the most probable tokens are in them, as in `Drafted.log_probs`.
        target_log_probs: of these tokens.
    """
    known = target_log_probs.masked_fill(columns == drafted.logits.shape[-1], NEVER)
    top = drafted.log_probs(columns)
    return Outcomes(
        torch.cat([known, _left_over(target_log_probs)], -1), torch.cat([top, _left_over(top)], -1)
    )


def all_outcomes(
    drafted: Drafted, target_log_probs: Float[Tensor, "positions drafted"]
) -> Outcomes:
    """Makes an outcome of each token that the drafter can say."""
    return Outcomes(target_log_probs, drafted.logits - drafted.total)


def sharpened(
    log_probs: Float[Tensor, "positions top"], temperatures: Float[Tensor, " positions"]
) -> Float[Tensor, "positions top"]:
    """Returns log probabilities of the same tokens at other temperatures.

    Of the tokens that are not known only the sum of probabilities is. They count as equally
    probable as the last known one but one, and below temperature 1 they cannot have more. (The last
    one may be known because it was drawn.)

    Args:
        log_probs: of the most probable tokens at temperature 1.
        temperatures: above 0.
    """
    inverse = 1 / temperatures[:, None]
    last = log_probs[:, -2:].amax(-1, keepdim=True)
    rest = _left_over(log_probs) + (inverse - 1) * last
    powers = inverse * log_probs
    return powers - torch.logaddexp(powers.logsumexp(-1, keepdim=True), rest)


def certain(is_token: Bool[Tensor, "positions top"]) -> Float[Tensor, "positions top"]:
    """Returns the log probabilities of a target that says these tokens and no others."""
    return torch.where(is_token, 0.0, NEVER)


def shared_draw_log_probs(
    outcomes: Outcomes, rest_in_common: float
) -> Float[Tensor, "positions known"]:
    """Returns how probable it is that both draw each known token, when they share the noise.

    Each token comes at a time w / p for the target and w / q for the drafter, with the same w, and
    each model takes the token that comes first. Both take token i with the probability
    1 / sum_j max(p_j / p_i, q_j / q_i) (Daliri, Musco and Suresh 2024). The last outcome stands for
    many tokens, which may differ, and counts as none.

    Args:
        outcomes: at temperatures of the text.
        rest_in_common: how much of what both leave over is taken for the same tokens, of the part
            that is smaller: 1 gives the largest probabilities that there can be, 0 the smallest.

    Returns:
        The logarithms. Where the target is certain of a token, its column is the drafter's log
        probability of it.
    """
    unsaid = _left_over(outcomes.target)  # by the drafter
    target = torch.cat([outcomes.target, unsaid], -1)
    drafter = F.pad(outcomes.drafter, (0, 1), value=NEVER)
    ratios = [each[:, None, :] - each[:, :-2, None] for each in (target, drafter)]
    times = torch.maximum(*ratios)
    if rest_in_common < 1:
        apart = torch.minimum(*ratios)[..., -2:-1] + math.log(1 - rest_in_common)
        times = torch.cat([times, apart], -1)
    return -times.logsumexp(-1)


def divergence(kind: Divergence, outcomes: Outcomes) -> Float[Tensor, " positions"]:
    """Returns the divergence at each position.

    Total variation and rejection are probabilities, the others nats.
    """
    target, drafter = outcomes.target, outcomes.drafter
    if kind == "forward_kl":
        return (target.exp() * (target - drafter)).sum(-1)
    if kind == "reverse_kl":
        return (drafter.exp() * (drafter - target.clamp_min(LEAST_LOG_PROB))).sum(-1)
    if kind == "rejection":
        return 1 - shared_draw_log_probs(outcomes, rest_in_common=1).exp().sum(-1)
    return (target.exp() - drafter.exp()).abs().sum(-1) / 2


def cross_entropy(
    drafted: Drafted, columns: Int[Tensor, " positions"]
) -> Float[Tensor, " positions"]:
    """Returns the cross-entropy of some tokens in nats; 0 for those that cannot be said."""
    log_probs = drafted.log_probs(columns[:, None])[:, 0]
    return -log_probs.masked_fill(columns == drafted.logits.shape[-1], 0.0)


def _left_over(log_probs: Float[Tensor, "positions top"]) -> Float[Tensor, "positions 1"]:
    """Returns the log probability of all other tokens together."""
    return (1 - log_probs.exp().sum(-1, keepdim=True)).clamp_min(LEAST_LEFT_OVER).log()
