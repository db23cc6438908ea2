"""Log probabilities of single tokens, as users ask for them.

They are the target's own: the log-softmax, in float32, of the logits that the model gave, before
temperature, filters, penalties and other constraints. So they do not depend on how a text was
sampled or drafted, and equal those of plain decoding: to the bit in our engines on a CPU, within
rounding elsewhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from treesnake.arguments import as_count
from treesnake.errors import InvalidInputError
from treesnake.sampling import largest, log_softmax
from treesnake.threads import on_one_thread


@dataclass(frozen=True)
class TokenLogprobs:
    """What the target said of one token of a text.

    Attributes:
        token_id: the token.
        logprob: the natural logarithm of its probability, given the text before it.
        top: the most probable tokens there with theirs, in falling order; as many as were asked
            for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def as_num_top(logprobs: object, vocab_size: int) -> int:
    """Returns how many of the most probable tokens are asked for at each position.

    Raises:
        InvalidInputError: if it is no whole number from 0 to the size of the vocabulary.
    """
    num_top = as_count("logprobs", logprobs, least=0)
    if num_top > vocab_size:
        raise InvalidInputError(
            f"logprobs must be at most {vocab_size}, the tokens that the model knows, got {num_top}"
        )
    return num_top


@on_one_thread
def token_logprobs(
    logits: Float[Tensor, "tokens vocab"], token_ids: Iterable[int], num_top: int
) -> tuple[TokenLogprobs, ...]:
    """Returns what each row of logits says of the token that came after it.

    Rows are taken one by one, so that each gives the same bits whatever is beside it.
    """
    return tuple(
        _of_row(log_softmax(row[None].float()), token, num_top)
        for row, token in zip(logits, token_ids, strict=True)
    )


def _of_row(log_probs: Float[Tensor, "1 vocab"], token: int, num_top: int) -> TokenLogprobs:
    top = largest(log_probs, num_top)
    pairs = zip(top.indices[0].tolist(), top.values[0].tolist(), strict=True)
    return TokenLogprobs(token, float(log_probs[0, token]), tuple(pairs))
