"""How a text begins for a model: the tokens that a tokenizer puts in front of it, once."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

PROBE = "a"


@runtime_checkable
class TextEncoder(Protocol):
    """The half of a tokenizer of transformers that makes tokens of text."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns token ids; the special tokens are those that the model expects around a text."""
        ...


def encode_text(tokenizer: TextEncoder, text: str) -> list[int]:
    """Returns the tokens of a text that is to be continued.

    In front stand the tokens with which the tokenizer begins texts, also if the text itself begins
    with them: then they stand there once, not twice. No end stands behind the text, for it goes on.
    """
    around = tokenizer.encode(PROBE)
    beginning = _in_front(tokenizer.encode(PROBE, add_special_tokens=False), around)
    if beginning is None:
        return list(tokenizer.encode(text))
    tokens = tokenizer.encode(text, add_special_tokens=False)
    if list(tokens[: len(beginning)]) == beginning:
        return list(tokens)
    return [*beginning, *tokens]


def _in_front(inner: Sequence[int], outer: Sequence[int]) -> list[int] | None:
    """Returns the tokens before others; None if those are none, or not to be found."""
    width = len(inner)
    for start in range(len(outer) - width + 1):
        if width and list(outer[start : start + width]) == list(inner):
            return list(outer[:start])
    return None
