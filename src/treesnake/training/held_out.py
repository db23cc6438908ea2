"""Scores a drafter on text that it did not learn from.

The drafter that reads the target's text token by token makes the same guess at each position as in
a chain whose earlier tokens were accepted. So one pass over the text tells what speculative
decoding with chains would have done on it: of greedy text step by step, of sampled text in
expectation over the noise that both models draw by. Where not all of the target's probabilities
are stored, rare tokens make that an estimate; see `REST_IN_COMMON`. The method of `bench` that it
tells of is "chain(N) chosen" with the drafter in float32, on the whole prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from treesnake.training.chains import ChainSteps, chain_steps, in_rows
from treesnake.training.distillation_loss import LossTerms

NUM_BINS = 15
"""Of confidence, for the calibration error."""


@dataclass(frozen=True)
class ChainScore:
    """What chains of a drafter's guesses bring on texts of one temperature.

    Attributes:
        temperature: at which the target drew the texts.
        num_texts: how many.
        num_tokens: of the target's answers in them.
        tokens_per_step: emitted by a step; the first one of each text drafts nothing.
        acceptance_by_position: of the steps that guess at each depth, the part that is accepted.
            Where a text ends for want of room, its last token is not guessed, since a step has one
            of the target's own. Where an end token ends it, nobody knows that before, so chains
            guess that token too, and others behind it in vain. Chains that came up to the room's
            end there had fewer guesses; the room is not known, and they count as whole ones.
    """

    temperature: float
    num_texts: int
    num_tokens: int
    tokens_per_step: float
    acceptance_by_position: tuple[float, ...]


@dataclass(frozen=True)
class HeldOutScore:
    """How well a drafter guesses some texts.

    Attributes:
        num_texts: how many.
        num_tokens: of the target's answers in them.
        loss: what training minimises, a token.
        agreement: the part of the tokens that are the drafter's most probable ones.
        tokens_per_step: emitted by a step of decoding with chains of the drafter's.
        calibration_error: between the drafter's confidence in its guesses and how often they are
            right; the expected calibration error over 15 bins of equal width.
        chains: the same tokens a step for each temperature alone, and by depth.
    """

    num_texts: int
    num_tokens: int
    loss: float
    agreement: float
    tokens_per_step: float
    calibration_error: float
    chains: tuple[ChainScore, ...]

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> "HeldOutScore":
        """Reads what `json` made of `dataclasses.asdict`."""
        chains = tuple(
            ChainScore(**(each | {"acceptance_by_position": tuple(each["acceptance_by_position"])}))
            for each in fields["chains"]
        )
        return cls(**(dict(fields) | {"chains": chains}))


def score_texts(
    terms: LossTerms,
    counts: Sequence[int],
    temperatures: Sequence[float],
    draft_length: int,
    has_ended: Sequence[bool],
) -> HeldOutScore:
    """Scores the learned tokens of some texts.

    Args:
        terms: of the tokens, one text after the other.
        counts: tokens of each text.
        temperatures: at which the target drew each text.
        draft_length: of the chains.
        has_ended: whether the last token of each text is an end token.
    """
    lengths, drawn_at = torch.tensor(counts), torch.tensor(temperatures)
    # So many tokens of a text, and of what a chain guesses behind its end, can be guessed.
    guessable = torch.where(torch.tensor(has_ended), lengths + draft_length, lengths - 1)
    accept_probs = in_rows(terms.accept_prob, counts)
    steps = chain_steps(accept_probs, lengths, draft_length)
    return HeldOutScore(
        num_texts=len(counts),
        num_tokens=len(terms.loss),
        loss=float(terms.loss.mean()),
        agreement=float(terms.is_right.mean()),
        tokens_per_step=float(lengths.sum() / steps.num_steps.sum()),
        calibration_error=calibration_error(terms.confidence, terms.is_right),
        chains=tuple(
            _score_chains(
                temperature, drawn_at == temperature, steps, accept_probs, lengths, guessable
            )
            for temperature in sorted({*drawn_at.tolist()})
        ),
    )


def _score_chains(
    temperature: float,
    rows: Bool[Tensor, " texts"],
    steps: ChainSteps,
    accept_probs: Float[Tensor, "texts tokens"],
    lengths: Int[Tensor, " texts"],
    guessable: Int[Tensor, " texts"],
) -> ChainScore:
    num_tokens = lengths[rows].sum()
    guesses = steps.guess_chances[rows]
    accepted = guesses * accept_probs[rows][..., None]
    places = torch.arange(guesses.shape[1])[:, None]
    room = guessable[rows][:, None, None]
    is_guessed = places < room
    is_offered = places + torch.arange(guesses.shape[2]) < room
    offered = (guesses[..., :1] * is_offered).sum((0, 1))
    return ChainScore(
        temperature=round(temperature, 4),
        num_texts=int(rows.sum()),
        num_tokens=int(num_tokens),
        tokens_per_step=float(num_tokens / steps.num_steps[rows].sum()),
        acceptance_by_position=tuple(
            ((accepted * is_guessed).sum((0, 1)) / offered.clamp_min(1e-9)).tolist()
        ),
    )


def calibration_error(
    confidence: Float[Tensor, " positions"], is_right: Float[Tensor, " positions"]
) -> float:
    """Returns the expected calibration error (Guo et al. 2017)."""
    bins = (confidence * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    gaps = torch.zeros(NUM_BINS).index_add_(0, bins, (confidence - is_right).float())
    return float(gaps.abs().sum() / max(len(confidence), 1))
