"""What an attention model offers to both roles, whichever engine runs it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from treesnake.errors import BrokenModelError
from treesnake.models.tree_model import TreeModel


@runtime_checkable
class AttentionState(TreeModel, Protocol):
    """A text and a tree of tokens that grows on it; a text can be cut back anywhere."""

    @property
    def length(self) -> int:
        """The number of tokens in the text."""
        ...

    def broken_model_error(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> BrokenModelError:
        """Returns the error for a model whose logits for this tree are no numbers; finds where.

        The tree is one that was forgotten. Costs several forward passes.
        """
        ...


@runtime_checkable
class AttentionNetwork(Protocol):
    """Weights that the states of many texts share."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens that there are logits for."""
        ...

    @property
    def context_length(self) -> int | None:
        """The number of tokens that fit, or None if there is no limit."""
        ...

    def new_state(self) -> AttentionState:
        """Returns the state of an empty text."""
        ...
