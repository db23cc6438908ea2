"""A grammar: the answer is one of a few words, whatever the target would rather say.

The constraint changes the target, so what is generated is exactly the constrained target's text.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from treesnake import AllowedTokens, SpeculativeDecoder

QUESTION = "Is the sky blue on a sunny day? Answer with one word."
ANSWERS = ("yes", "no", "perhaps")

decoder = SpeculativeDecoder.from_pretrained()
prompt = decoder.encode([{"role": "user", "content": QUESTION}])
vocab_size = decoder.new_session().target.vocab_size
texts = [decoder.encode(answer).token_ids for answer in ANSWERS]


def allowed_mask(prefix: Sequence[int]) -> Bool[Tensor, " vocab"]:
    """Allows what continues one of the answers, and the end after a whole one."""
    said = tuple(prefix[len(prompt) :])
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    for text in texts:
        if text[: len(said)] == said:
            following = text[len(said) : len(said) + 1] or decoder.end_token_ids
            mask[list(following)] = True
    return mask


print(decoder.generate(prompt, constraints=[AllowedTokens(allowed_mask)]).text)
