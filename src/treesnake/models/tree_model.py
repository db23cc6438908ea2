"""What a network offers to both roles: the state of one text, with a tree of tokens on it.

A target scores whole trees with it and a drafter grows trees level by level. Each role is a thin
adapter over the same state.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class TreeModel(Protocol):
    """A language model's state of one sequence, with a tree of tokens growing on it.

    Nodes are numbered in the order of appending, from 0 after each prefill and commit.
    """

    def prefill(self, token_ids: Sequence[int]) -> None:
        """Makes the state hold exactly these tokens, reusing it if it holds their beginning."""
        ...

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Appends nodes below earlier ones, or below the state (-1); returns logits after each."""
        ...

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path into the state and forgets the tree; the path may be empty."""
        ...
