"""A drafter's network that can learn: the next token depends on the last one alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from treesnake.testing.tiny import TinyNetwork


class BigramModel:
    """What comes after a token is told by that token's column of a table, even at first.

    Args:
        vocab_size: the number of tokens.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.table = torch.zeros(vocab_size, vocab_size)

    def initial(self) -> int:
        """Returns token 0."""
        return 0

    def step(self, state: int, token: int) -> tuple[int, Float[Tensor, " vocab"]]:
        """Returns the token and the logits after it."""
        return token, self.table[:, token]


@dataclass(frozen=True)
class BigramNetwork(TinyNetwork):
    """A network whose output layer sees which token is the last.

    Attributes:
        model: the table.
    """

    model: BigramModel

    @classmethod
    def of(cls, vocab_size: int) -> "BigramNetwork":
        """Returns one that has learned nothing."""
        return cls(BigramModel(vocab_size))

    def hidden_states(self, token_ids: Sequence[int]) -> Iterator[Float[Tensor, "_ hidden"]]:
        """Yields a one for each token."""
        yield F.one_hot(torch.tensor(token_ids), self.vocab_size).float()

    def output_weight(self) -> Float[Tensor, "outputs hidden"]:
        """Returns a copy of the table."""
        return self.model.table.clone()

    def replace_output(self, weight: Float[Tensor, "outputs hidden"]) -> None:
        """Exchanges the table."""
        self.model.table = weight.clone()
