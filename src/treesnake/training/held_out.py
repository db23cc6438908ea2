"""Scores a drafter on text that it did not learn from.

Where the target's text is greedy, the drafter that reads it token by token makes the same guess at
each position as in a chain whose earlier tokens were accepted. So one pass over the text tells
exactly what speculative decoding with chains would have done on it, step by step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NUM_BINS = 15
"""Of confidence, for the calibration error."""


@dataclass(frozen=True)
class HeldOutScore:
    """How well a drafter guesses some texts.

    Attributes:
        num_texts: how many.
        num_tokens: of the target's answers in them.
        loss: what training minimises, a token.
        agreement: the part of the tokens that are the drafter's most probable ones.
        tokens_per_step: emitted by a step of greedy decoding with chains of the drafter's.
        calibration_error: between the drafter's confidence in its guesses and how often they are
            right; the expected calibration error over 15 bins of equal width.
    """

    num_texts: int
    num_tokens: int
    loss: float
    agreement: float
    tokens_per_step: float
    calibration_error: float


def emitted_tokens(is_right: Sequence[bool], draft_length: int) -> list[int]:
    """Returns what each step emits over a text, given where the drafter guesses right.

    A step emits the guesses up to the first wrong one, at most `draft_length`, and one token of the
    target's own; the last step ends with the text.
    """
    emitted = []
    position = 0
    while position < len(is_right):
        drafted = is_right[position : position + draft_length]
        accepted = drafted.index(False) if False in drafted else len(drafted)
        emitted.append(min(accepted + 1, len(is_right) - position))
        position += emitted[-1]
    return emitted


def calibration_error(
    confidence: Float[Tensor, " positions"], is_right: Float[Tensor, " positions"]
) -> float:
    """Returns the expected calibration error (Guo et al. 2017)."""
    bins = (confidence * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    gaps = torch.zeros(NUM_BINS).index_add_(0, bins, (confidence - is_right).float())
    return float(gaps.abs().sum() / max(len(confidence), 1))
