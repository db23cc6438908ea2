"""Which tokens a drafter can say: the most frequent ones of what it will be asked to draft."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int, Integer
from torch import Tensor

from treesnake.errors import InvalidInputError
from treesnake.training.shards import Shard

ANSWER_WEIGHT, TOP_WEIGHT, PROMPT_WEIGHT = 4, 1, 1
"""What a token counts for in an answer, among the target's best guesses, and in a prompt."""

NUM_TOP = 3
"""So many of the target's best guesses count."""


def choose_draft_vocabulary(
    shards: Iterable[Shard], size: int, always: Sequence[int], vocab_size: int
) -> Int[Tensor, " drafted"]:
    """Returns the tokens that a drafter says, in ascending order.

    The target's own answers count most; what it nearly said and what it was asked fill up the rest.

    Args:
        shards: of texts to learn from.
        size: how many tokens at most.
        always: tokens that are among them in any case, such as those that end a text.
        vocab_size: the target's.

    Raises:
        InvalidInputError: if there is no room for `always`.
    """
    if size < len(always):
        raise InvalidInputError(f"a draft vocabulary of {size} has no room for the end tokens")
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for shard in shards:
        counts += ANSWER_WEIGHT * _counts(shard.answers, vocab_size)
        counts += PROMPT_WEIGHT * _counts(shard.prompts, vocab_size)
        if shard.top_ids is not None:
            counts += TOP_WEIGHT * _counts(shard.top_ids[:, :NUM_TOP].flatten(), vocab_size)
    counts[list(always)] = counts.max() + 1
    ranked = counts.argsort(descending=True, stable=True)[:size]
    return ranked[counts[ranked] > 0].sort().values


def _counts(tokens: Integer[Tensor, " tokens"], vocab_size: int) -> Int[Tensor, " vocab"]:
    return torch.bincount(tokens.long(), minlength=vocab_size)
