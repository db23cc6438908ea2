"""The loss of a batch: how far the drafter is from the target at each learned position."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from treesnake.training.learner import Learner
from treesnake.training.losses import (
    NEVER,
    Drafted,
    Outcomes,
    all_outcomes,
    certain,
    cross_entropy,
    divergence,
    shared_draw_log_probs,
    sharpened,
    stored_outcomes,
)
from treesnake.training.texts import Batch
from treesnake.training.training_recipe import Divergence

POSITIONS_PER_PART = 1024
"""The logits of so many positions exist at once; of more, they are made again for the gradients."""

NUM_TOP = 16
"""Of all that a target says which runs along, so many tokens are looked at for agreement."""


REST_IN_COMMON = 0.5
"""How much the rare tokens of target and drafter are taken for the same ones, where the target's
are not known, to estimate how often a guess is accepted. Of SmolLM2's answers the estimate is then
0.3 % too high at temperatures 0.7 and 1; with 1 it is 0.6 and 2.0 % too high, with 0 up to 1.0 %
too low (tokens a step of chains of 4, 16 tokens known)."""


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        divergence: from the target's distribution, "rejection" at the temperature of the text, the
            others at 1; None where only the tokens are learned.
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
        accept_prob: the probability that it guesses the text's token, given that the target says
            it. At temperature 0 that is `is_right`; above, both draw by shared noise.
    """

    loss: Float[Tensor, " positions"]
    is_right: Float[Tensor, " positions"]
    confidence: Float[Tensor, " positions"]
    accept_prob: Float[Tensor, " positions"]

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
        columns = torch.full((target_size + 1,), len(drafted))  # the last one is of `NO_TOKEN`
        columns[drafted] = torch.arange(len(drafted))
        self.drafted: Tensor
        self._columns: Tensor
        self.register_buffer("drafted", drafted, persistent=False)
        self.register_buffer("_columns", columns, persistent=False)

    def forward(
        self, batch: Batch, target_logits: Float[Tensor, "positions vocab"] | None = None
    ) -> Float[Tensor, "positions 4"]:
        """Returns the columns of `LossTerms`.

        Args:
            batch: texts, and the positions where they are learned.
            target_logits: where the target was run along; else the probabilities in the batch are
                used.
        """
        features = self._features(batch.tokens).flatten(0, 1)[batch.positions]
        weight = self._output_rows()
        if not len(features):
            # A device without positions takes part in the sum of gradients all the same.
            return (features.sum() + weight.sum()).expand(0, 4)
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
    ) -> Float[Tensor, "positions 4"]:
        drafted = Drafted.of(F.linear(features, weight).float())
        labels = self._columns[batch.labels[part]]
        target = self._known(batch, target_logits, part)
        loss = torch.zeros(len(labels), device=labels.device)
        if self._objective.cross_entropy_weight:
            loss = loss + self._objective.cross_entropy_weight * cross_entropy(drafted, labels)
        if self._objective.divergence is not None:
            outcomes = self._outcomes(drafted, target, target_logits, part)
            loss = loss + divergence(self._objective.divergence, outcomes)
        found = Drafted(drafted.logits.detach(), drafted.total.detach())
        best = found.logits.max(-1)
        is_right = (best.indices == labels).float()
        confidence = (best.values - found.total[:, 0]).exp()
        accept_prob = self._accept_probs(found, target, is_right)
        return torch.stack([loss, is_right, confidence, accept_prob], -1)

    def _outcomes(
        self,
        drafted: Drafted,
        target: "_Known",
        target_logits: Float[Tensor, "all_positions vocab"] | None,
        part: slice,
    ) -> Outcomes:
        """Returns what the drafter is compared in."""
        if self._objective.divergence == "rejection":
            return self._drawn(drafted, target)
        if target_logits is None:
            return stored_outcomes(drafted, self._columns[target.top_ids], target.top_log_probs)
        log_probs = target_logits[part].float().log_softmax(-1)
        return all_outcomes(drafted, log_probs[:, self.drafted])

    def _known(
        self, batch: Batch, target_logits: Float[Tensor, "all_positions vocab"] | None, part: slice
    ) -> "_Known":
        """Returns what is known of the target at some positions."""
        labels, temperatures = batch.labels[part], batch.temperatures[part]
        if target_logits is None:
            return _Known(labels, temperatures, batch.top_ids[part], batch.top_log_probs[part])
        log_probs = target_logits[part].float().log_softmax(-1)
        top = log_probs.topk(min(NUM_TOP, log_probs.shape[-1]))
        return _Known(labels, temperatures, top.indices, top.values)

    def _drawn(self, drafted: Drafted, target: "_Known") -> Outcomes:
        """Returns the outcomes of drawing at the temperatures of the text.

        At temperature 0 the target says its token for certain. The drafter's best token is no
        smooth function of its weights, so it draws at temperature 1 there.
        """
        is_greedy = target.temperatures == 0
        temperatures = target.temperatures.masked_fill(is_greedy, 1)
        log_probs = torch.where(
            is_greedy[:, None],
            certain(target.is_label),
            sharpened(target.top_log_probs, temperatures),
        )
        if not is_greedy.all():
            drafted = Drafted.of(drafted.logits / temperatures[:, None])
        return stored_outcomes(drafted, self._columns[target.top_ids], log_probs)

    def _accept_probs(
        self,
        drafted: Drafted,
        target: "_Known",
        is_right: Float[Tensor, " positions"],
    ) -> Float[Tensor, " positions"]:
        is_drawn = target.temperatures > 0
        drawn = target.rows(is_drawn)
        outcomes = self._drawn(Drafted(drafted.logits[is_drawn], drafted.total[is_drawn]), drawn)
        both = shared_draw_log_probs(outcomes, REST_IN_COMMON)
        given_label = both - outcomes.target[:, :-1]
        is_said = drawn.is_label & (outcomes.target[:, :-1] > NEVER / 2)
        accepted = (given_label.exp() * is_said).sum(-1).clamp_max(1)
        return is_right.masked_scatter(is_drawn, accepted)


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of the target at some positions.

    Attributes:
        labels: the tokens of the text.
        temperatures: as in `Batch`.
        top_ids: the target's most probable tokens.
        top_log_probs: their log probabilities at temperature 1.
    """

    labels: Int[Tensor, " positions"]
    temperatures: Float[Tensor, " positions"]
    top_ids: Int[Tensor, "positions top"]
    top_log_probs: Float[Tensor, "positions top"]

    @property
    def is_label(self) -> Bool[Tensor, "positions top"]:
        """Which of the most probable tokens is that of the text."""
        return self.top_ids == self.labels[:, None]

    def rows(self, mask: Bool[Tensor, " positions"]) -> "_Known":
        """Returns what is known of some of the positions."""
        return _Known(**{name: each[mask] for name, each in vars(self).items()})
