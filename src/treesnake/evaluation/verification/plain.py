"""The reference: a target alone, one token at a time, which needs no tree and no rule."""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.prompt import Prompt
from treesnake.protocols import TargetModel
from treesnake.tree import TokenTree

PATH_OF_ANCHOR = (0,)


class PlainDecoding:
    """What a target says after a text, found by scoring single tokens.

    It has a session of its own, so that what another session does wrong leaves it untouched.
    """

    def __init__(self, model: TargetModel) -> None:
        self._session = model.new_session()

    def logits(self, text: Prompt) -> Float[Tensor, " vocab"]:
        """Returns the logits after a text that is prefilled in one part."""
        self._session.prefill(text)
        return self._score(text.token_ids[-1])

    def logits_along(
        self, prompt: Prompt, tokens: Sequence[int]
    ) -> Float[Tensor, "positions vocab"]:
        """Returns the logits in front of each of some tokens, decoding them one by one."""
        self._session.prefill(prompt)
        rows = []
        for token in (prompt.token_ids[-1], *tokens[:-1]):
            rows.append(self._score(token))
            self._session.commit(PATH_OF_ANCHOR)
        return torch.stack(rows)

    def _score(self, token: int) -> Float[Tensor, " vocab"]:
        return self._session.score(TokenTree.chain([token]))[0].float().cpu()


def is_ended(tokens: Sequence[int], end_token_ids: Collection[int]) -> bool:
    """Tells whether a text is over."""
    return bool(tokens) and tokens[-1] in end_token_ids


def last_bit(logits: Float[Tensor, " tokens"]) -> float:
    """Returns the distance between neighbouring numbers of the coarsest dtype that fits them all.

    Half-precision logits are steps apart although they come as float32: two that are equal to their
    last bit are a tie even if two ways of plain decoding happen to agree.
    """
    largest = max(float(logits.abs().max()), torch.finfo(torch.float32).tiny)
    for dtype in (torch.bfloat16, torch.float16):
        if bool((logits.to(dtype).float() == logits).all()):
            return largest * torch.finfo(dtype).eps
    return largest * torch.finfo(torch.float32).eps
