"""What a sequence begins with."""

from collections.abc import Sequence
from dataclasses import dataclass

from treesnake.errors import ContextLengthError, InvalidInputError


@dataclass(frozen=True)
class Prompt:
    """The tokens that a generation continues.

    Raises:
        InvalidInputError: if there is no token, or one is negative.
    """

    token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise InvalidInputError(
                "the prompt is empty: give at least one token (a beginning-of-text token will do)"
            )
        if min(self.token_ids) < 0:
            raise InvalidInputError(f"token ids cannot be negative, got {min(self.token_ids)}")

    @classmethod
    def of(cls, token_ids: Sequence[int]) -> "Prompt":
        """Makes a prompt of any sequence of token ids."""
        return cls(tuple(int(token) for token in token_ids))

    def __len__(self) -> int:
        return len(self.token_ids)

    def check(self, vocab_size: int, context_length: int | None) -> None:
        """Checks that a model with this vocabulary and context can continue the prompt.

        Raises:
            InvalidInputError: if a token is not in the vocabulary.
            ContextLengthError: if no new token would fit.
        """
        if max(self.token_ids) >= vocab_size:
            raise InvalidInputError(
                f"token id {max(self.token_ids)} is not in the vocabulary of {vocab_size} tokens; "
                "encode the prompt with the target's own tokenizer"
            )
        if context_length is not None and len(self) >= context_length:
            raise ContextLengthError(
                f"the prompt has {len(self)} tokens and the context holds {context_length}, "
                "so there is no room for a new one; shorten the prompt"
            )


def missing_tokens(held: Sequence[int], wanted: Sequence[int]) -> list[int] | None:
    """Returns what a state that holds some tokens lacks of the wanted ones.

    None if it holds anything else, so that it has to start afresh.
    """
    num_held = len(held)
    return list(wanted[num_held:]) if list(wanted[:num_held]) == list(held) else None


def num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns how many tokens two texts begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
