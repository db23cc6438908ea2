"""The loss of a batch: how far the drafter is from the target at each learned position."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from treesnake.training.learner import Learner
from treesnake.training.losses import all_outcomes, cross_entropy, divergence, stored_outcomes
from treesnake.training.texts import Batch
from treesnake.training.training_recipe import Divergence

POSITIONS_PER_PART = 1024
"""The logits of so many positions exist at once; of more, they are made again for the gradients."""


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        divergence: from the target's distribution; None where only the tokens are learned.
        cross_entropy_weight: how much the cross-entropy of the tokens counts.
    """

    divergence: Divergence | None
    cross_entropy_weight: float


@dataclass(frozen=True, eq=False)
class LossTerms:
    """How a drafter did at some positions; each is a column of what `DistillationLoss` returns.

    Attributes:
        loss: what is minimised.
        is_right: 1 where its most probable token is the text's.
        confidence: the probability that it gave to that token.
    """

    loss: Float[Tensor, " positions"]
    is_right: Float[Tensor, " positions"]
    confidence: Float[Tensor, " positions"]

    @classmethod
    def of(cls, columns: Float[Tensor, "positions terms"]) -> "LossTerms":
        """Names the columns."""
        return cls(*columns.unbind(-1))


class DistillationLoss(nn.Module):
    """Computes what a learner minimises, from its network to the loss of each position.

    The loss is made inside of `forward`, where wrappers for many devices have all weights in place.

    Args:
        learner: the network.
        objective: what is minimised.
        target_size: the number of the target's tokens.
        draft_vocabulary: the tokens that the learner may say; None for all that it knows.
    """

    def __init__(
        self,
        learner: Learner,
        objective: Objective,
        target_size: int,
        draft_vocabulary: Int[Tensor, " drafted"] | None,
    ) -> None:
        super().__init__()
        self.learner = learner
        self._objective = objective
        drafted = draft_vocabulary
        if drafted is None:
            drafted = torch.arange(min(learner.vocab_size, target_size))
        columns = torch.full((target_size,), len(drafted))
        columns[drafted] = torch.arange(len(drafted))
        self.drafted: Tensor
        self._columns: Tensor
        self.register_buffer("drafted", drafted, persistent=False)
        self.register_buffer("_columns", columns, persistent=False)

    def forward(
        self, batch: Batch, target_logits: Float[Tensor, "positions vocab"] | None = None
    ) -> Float[Tensor, "positions 3"]:
        """Returns the columns of `LossTerms`.

        Args:
            batch: texts, and the positions where they are learned.
            target_logits: where the target was run along; else those stored with the batch are
                used, if the objective needs any.
        """
        features = self._features(batch.tokens).flatten(0, 1)[batch.positions]
        weight = self._output_rows()
        if not len(features):
            # A device without positions takes part in the sum of gradients all the same.
            return (features.sum() + weight.sum()).expand(0, 3)
        starts = range(0, len(features), POSITIONS_PER_PART)
        parts = [slice(start, start + POSITIONS_PER_PART) for start in starts]
        if len(parts) == 1:
            return self._loss_terms(features, weight, batch, target_logits, parts[0])
        terms = [
            checkpoint(
                self._loss_terms,
                features[part],
                weight,
                batch,
                target_logits,
                part,
                use_reentrant=False,
            )
            for part in parts
        ]
        return torch.cat(terms)

    def next_probs(
        self, tokens: Int[Tensor, "texts tokens"], ends: Int[Tensor, " texts"]
    ) -> Float[Tensor, "texts drafted"]:
        """Returns the probabilities of the token after a position of each text."""
        rows = torch.arange(len(tokens), device=tokens.device)
        features = self._features(tokens)[rows, ends]
        return F.linear(features, self._output_rows()).float().softmax(-1)

    def _features(
        self, tokens: Int[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts tokens hidden"]:
        # A token that the learner does not know is read as token 0, as `PaddedVocabulary` has it.
        return self.learner(tokens.masked_fill(tokens >= self.learner.vocab_size, 0))

    def _output_rows(self) -> Float[Tensor, "drafted hidden"]:
        weight = self.learner.output_weight
        return weight if len(self.drafted) == len(weight) else weight[self.drafted]

    def _loss_terms(
        self,
        features: Float[Tensor, "positions hidden"],
        weight: Float[Tensor, "drafted hidden"],
        batch: Batch,
        target_logits: Float[Tensor, "all_positions vocab"] | None,
        part: slice,
    ) -> Float[Tensor, "positions 3"]:
        logits = F.linear(features, weight).float()
        labels = self._columns[batch.labels[part]]
        loss = torch.zeros(len(logits), device=logits.device)
        if self._objective.cross_entropy_weight:
            loss = loss + self._objective.cross_entropy_weight * cross_entropy(logits, labels)
        if self._objective.divergence is not None:
            if target_logits is not None:
                log_probs = target_logits[part].float().log_softmax(-1)
                outcomes = all_outcomes(logits, log_probs[:, self.drafted])
            else:
                assert batch.top_ids is not None
                assert batch.top_log_probs is not None
                columns = self._columns[batch.top_ids[part]]
                outcomes = stored_outcomes(logits, columns, batch.top_log_probs[part])
            loss = loss + divergence(self._objective.divergence, outcomes)
        best = logits.detach().max(-1)
        confidence = (best.values - logits.detach().logsumexp(-1)).exp()
        return torch.stack([loss, (best.indices == labels).float(), confidence], -1)
