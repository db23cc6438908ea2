"""How probable a target finds a text that is there already."""

from collections.abc import Generator

from treesnake.errors import InvalidInputError
from treesnake.lease import leased
from treesnake.logprobs import TokenLogprobs, token_logprobs
from treesnake.prompt import Prompt
from treesnake.protocols import Target
from treesnake.tree import TokenTree

PART = 64
"""Tokens that are scored in one pass; each has a row of logits."""


@leased
def score_text(
    target: Target, prompt: Prompt, num_top: int = 0
) -> Generator[tuple[TokenLogprobs, ...], None, None]:
    """Scores a text part by part, as chains of tokens.

    It yields the log probabilities of the next tokens, up to 64 at once. The first token of the
    text has none. Behind the last part the session holds all of the text but its last token, as
    after `Target.prefill`. What it held before is dropped.

    Args:
        target: the session that scores.
        prompt: the text, of tokens alone.
        num_top: how many of the most probable tokens each position tells.

    Raises:
        InvalidInputError: if the prompt brings images, or has a token that the target lacks.
        ContextLengthError: if the text does not fit into the target's context.
    """
    if prompt.inputs:
        raise InvalidInputError(
            "log probabilities of a prompt are for text alone, and this one brings images; leave "
            "them out"
        )
    prompt.check(target.vocab_size, target.context_length)
    tokens = prompt.token_ids
    target.prefill(Prompt(tokens[:1]))
    for start in range(0, len(tokens) - 1, PART):
        end = min(start + PART, len(tokens) - 1)
        logits = target.score(TokenTree.chain(tokens[start:end]))
        scored = token_logprobs(logits, tokens[start + 1 : end + 1], num_top)
        target.commit(tuple(range(end - start)))
        yield scored
