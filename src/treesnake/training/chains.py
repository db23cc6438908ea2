"""What steps of speculative decoding with chains make of a text.

Losslessness makes this exact: the drafter is only ever asked behind the target's own text, so how
probable it is to guess each token of that text decides how many steps the text takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, eq=False)
class ChainSteps:
    """How texts are emitted, step by step.

    Attributes:
        guess_chances: how probable it is that each token is guessed at each depth of a chain. What
            is left to 1 is the probability that it is not guessed, since a whole chain was right.
        num_steps: the expected number of steps of each text.
        saved_steps: how many fewer steps the text takes if the guess of a token is right than if it
            is wrong, times the probability that there is a guess. It is the derivative of the
            number of steps by the probability of a right guess.
    """

    guess_chances: Float[Tensor, "texts tokens depths"]
    num_steps: Float[Tensor, " texts"]
    saved_steps: Float[Tensor, "texts tokens"]


def chain_steps(
    accept_probs: Float[Tensor, "texts tokens"], lengths: Int[Tensor, " texts"], draft_length: int
) -> ChainSteps:
    """Returns the steps of chains over some texts.

    The first step drafts nothing. Each later one drafts a chain behind the token before it; it ends
    with the first wrong guess, whose token the target gives, or with one more token of the target's
    behind a chain that is right.

    Args:
        accept_probs: of each token, the probability that the drafter guesses it if asked. Rows may
            be filled up with anything.
        lengths: tokens of each text.
        draft_length: of the chains.
    """
    in_text = (torch.arange(accept_probs.shape[1]) < lengths[:, None])[..., None]
    now = _one_hot(len(lengths), draft_length + 1, draft_length)
    chances = []
    for accepted in accept_probs.T[..., None]:
        chances.append(now)
        right = now[:, :-1] * accepted
        now = torch.cat([now.sum(-1, keepdim=True) - right.sum(-1, keepdim=True), right], -1)
    guesses = torch.stack(chances, 1)[..., :-1] * in_text
    return ChainSteps(
        guess_chances=guesses,
        num_steps=1 + guesses[..., 0].sum(-1),
        saved_steps=(guesses * _gains(accept_probs, in_text, draft_length)).sum(-1),
    )


def _gains(
    accept_probs: Float[Tensor, "texts tokens"],
    in_text: Bool[Tensor, "texts tokens 1"],
    draft_length: int,
) -> Float[Tensor, "texts tokens depths"]:
    """Returns what a right guess saves at each depth, in steps; behind its end a text goes on."""
    steps_left = _one_hot(len(accept_probs), draft_length + 1, 0)
    gains = []
    backwards = accept_probs.T.flip(0)[..., None], in_text.transpose(0, 1).flip(0)
    for accepted, is_in in zip(*backwards, strict=True):
        wrong, right = steps_left[:, :1], steps_left[:, 1:]
        gains.append(wrong - right)
        before = torch.cat([wrong + accepted * (right - wrong), wrong], -1)
        before[:, 0] += 1  # a step begins here
        steps_left = torch.where(is_in, before, steps_left)
    return torch.stack(gains, 1).flip(1)


def _one_hot(num_rows: int, width: int, column: int) -> Float[Tensor, "rows width"]:
    rows = torch.zeros(num_rows, width)
    rows[:, column] = 1
    return rows


def in_rows(
    values: Float[Tensor, " positions"], counts: Sequence[int]
) -> Float[Tensor, "texts tokens"]:
    """Returns the values of texts, which come one text after the other, with a row for each."""
    return pad_sequence(list(values.split(list(counts))), batch_first=True)
