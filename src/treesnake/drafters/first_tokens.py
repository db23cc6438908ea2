"""Which of the target's tokens comes first where a drafter with another tokenizer goes on.

A target that samples draws by noise that belongs to its own tokens (`treesnake.waiting_times`). A
drafter in text guesses by the same noise: that of the token that its own token begins with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from treesnake.drafters.spelling import Spelling

MOST_BYTES = 32
"""Longer beginnings of a token are not looked for."""


@dataclass(frozen=True, eq=False)
class FirstTokens:
    """How the tokens of a drafter are written in the target's.

    Attributes:
        ids: for each column of the drafter's logits the target's token that comes first, -1 if that
            is not known.
        counts: of each of the drafter's tokens how many of the target's it becomes, by number.
    """

    ids: Int[np.ndarray, " columns"]
    counts: Mapping[int, int]


def first_tokens(
    token_ids: Sequence[int], own: Spelling, target: Spelling, special: Mapping[int, int]
) -> FirstTokens:
    """Finds how tokens are written, each by itself.

    A token that the target has, too, is that; any other begins with the longest one that fits, and
    what is left begins anew. Tokenizers join pieces by other rules, which costs acceptance at most.

    Args:
        token_ids: the drafter's, in the order of its logits.
        own: spells them.
        target: spells the target's.
        special: the target's special tokens for those of the drafter.
    """
    ids = np.full(len(token_ids), -1, np.int64)
    counts: dict[int, int] = {}
    for column, token in enumerate(token_ids):
        spelled = own.of(token)
        if token in special:
            written = [special[token]]
        else:
            written = _written(spelled if isinstance(spelled, bytes) else b"", target)
        if written:
            ids[column] = written[0]
        counts[token] = max(len(written), 1)
    return FirstTokens(ids, counts)


def _written(data: bytes, target: Spelling) -> list[int]:
    """Returns the target's tokens of a text, the longest first; none if it cannot be written."""
    found: list[int] = []
    while data:
        for end in range(min(len(data), MOST_BYTES), 0, -1):
            token = target.token_of(data[:end])
            if token is not None:
                break
        else:
            return []
        found.append(token)
        data = data[end:]
    return found
