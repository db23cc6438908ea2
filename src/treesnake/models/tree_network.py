"""What a network offers to both roles: texts, and trees of tokens that grow on them.

A target scores whole trees with it and a drafter grows trees level by level; each role is a thin
adapter over the same network. Attention, state space models and hybrids all look like this, in our
own engines and in transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.errors import BrokenModelError, InvalidInputError
from treesnake.prompt import Prompt
from treesnake.shape import FixedTree
from treesnake.states.snapshots import Snapshot
from treesnake.waiting_times import Noise


@runtime_checkable
class TreeState(Protocol):
    """A network's state of one text, and a tree of tokens that grows on it.

    Nodes are numbered in the order of appending, from 0 after each prefill and commit; -1 stands
    for the text. So the parents of a `TokenTree` serve as they are: its anchor continues the text.
    `extend` that raises leaves text and tree as they were; what an interrupted `prefill`, `commit`
    or `restore` leaves is a text that is held, if only an empty one.
    """

    @property
    def length(self) -> int:
        """The number of tokens in the text."""
        ...

    @property
    def num_bytes(self) -> int:
        """What the text takes in memory."""
        ...

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last, and no tree.

        What the state can reuse is not run again: the part of its text that the prompt begins with,
        or a snapshot that it kept. Long prompts run part by part, with a `treesnake.pauses.pause`
        before each; if that is interrupted, the state holds a beginning of the prompt.

        Raises:
            InvalidInputError: if the prompt brings inputs that the network cannot read.
        """
        ...

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Appends nodes below earlier ones, or below the text (-1); returns logits after each.

        The same as `extend_all` of the network with this one part.
        """
        ...

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path into the text and forgets the tree; the path may be empty.

        Raises:
            InvalidInputError: if `path` does not go down the tree from a child of the text.
        """
        ...

    def snapshot(self) -> Snapshot:
        """Returns what is needed to come back to the text as it is now, without the tree."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Makes the text that of a snapshot, which this or another state of the network took.

        Raises:
            InvalidInputError: if a state of another network took it.
        """
        ...

    def broken_model_error(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> BrokenModelError:
        """Returns the error for a model whose logits for this tree are no numbers; finds where.

        The tree is one that was forgotten. Costs several forward passes.
        """
        ...


@dataclass(frozen=True, eq=False)
class Part:
    """What one text adds to a pass that it shares with others.

    Attributes:
        state: the text and its tree.
        token_ids: those of the nodes to append.
        parents: for each of them an earlier node, or -1 for the text.
    """

    state: TreeState
    token_ids: Sequence[int]
    parents: Sequence[int]


@runtime_checkable
class TreeNetwork(Protocol):
    """Weights that the states of many texts share."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens that it reads; there are logits for as many.

        A drafter's network that was restricted to a draft vocabulary has fewer logits.
        """
        ...

    @property
    def context_length(self) -> int | None:
        """The number of tokens that fit, or None if there is no limit."""
        ...

    def new_state(self) -> TreeState:
        """Returns the state of an empty text."""
        ...

    def extend_all(self, parts: Sequence[Part]) -> list[Float[Tensor, "_ vocab"]]:
        """Appends nodes to the trees of several texts in one pass over the weights.

        Each part gets the logits that it gets alone: the same bits from our CPU engines, equal
        within rounding elsewhere.

        Raises:
            InvalidInputError: if a tree cannot grow so, or two parts have one state.
        """
        ...


@runtime_checkable
class FixedTreeNetwork(Protocol):
    """A network that grows a tree that is fixed beforehand in one pass, tokens included."""

    def can_grow_fixed(self, shape: FixedTree) -> bool:
        """Tells whether it does so with this one."""
        ...

    def grow_fixed(self, part: Part, shape: FixedTree, noise: Noise | None = None) -> list[int]:
        """Appends nodes below each other, and below the last a fixed tree of the best tokens.

        Returns the columns of logits of the tokens that were chosen, level by level. Nodes without
        children are not appended, the others in the same order.

        Args:
            part: the given nodes, the only ones of their tree.
            shape: what grows below the last of them.
            noise: by which a target draws the token after the last of them, and those after it, so
                that likely ones come first; None for the most probable tokens.

        Raises:
            InvalidInputError: if the tree cannot grow so, or a token does not exist.
        """
        ...


@runtime_checkable
class LendingState(Protocol):
    """A state that another network of the same form may grow trees on, such as a low-bit copy."""

    def lent_to(self, network: TreeNetwork) -> TreeState:
        """Returns a state of the network whose text and tree are this one's, not a copy of them.

        Who borrows grows trees and forgets them; the text belongs to who lends.

        Raises:
            InvalidInputError: if the network keeps its texts in another form.
        """
        ...


@runtime_checkable
class ExactNetwork(Protocol):
    """A network whose fastest way to branch gives other bits than a text; it has another way."""

    def new_exact_state(self) -> TreeState:
        """Returns the state of an empty text where a node has the bits that a text gives it."""
        ...


@runtime_checkable
class InputNetwork(Protocol):
    """A network that may read what prompts bring beside tokens, such as images."""

    @property
    def reads_inputs(self) -> bool:
        """Whether it does."""
        ...


def reads_inputs(network: TreeNetwork) -> bool:
    """Tells whether a network reads the inputs of prompts; one that does not refuses them."""
    return isinstance(network, InputNetwork) and network.reads_inputs


State = TypeVar("State")


def own_states(parts: Sequence[Part], kind: type[State], network: object) -> list[State]:
    """Returns the states of the parts of a pass, once they are of this network.

    Args:
        parts: what is to run.
        kind: the network's own kind of state, whose `network` says which one made it.
        network: the network.

    Raises:
        InvalidInputError: if a state is another network's, or two parts belong to one text.
    """
    if len({id(part.state) for part in parts}) < len(parts):
        raise InvalidInputError(
            "two parts of a pass have the same state; join them to one part, whose nodes may "
            "continue each other"
        )
    candidates: list[object] = [part.state for part in parts]
    states = [
        state
        for state in candidates
        if isinstance(state, kind) and getattr(state, "network", None) is network
    ]
    if len(states) < len(parts):
        raise InvalidInputError(
            "a part has the state of another network; extend it with the network that made it"
        )
    return states


def check_tokens(token_ids: Sequence[int], vocab_size: int) -> None:
    """Raises InvalidInputError unless all tokens exist: networks look them up unchecked."""
    low, high = min(token_ids), max(token_ids)
    if low < 0 or high >= vocab_size:
        raise InvalidInputError(
            f"token {low if low < 0 else high} does not exist: the network has tokens 0 to "
            f"{vocab_size - 1}, got ids from {low} to {high}"
        )


def rows_by_part(
    logits: Float[np.ndarray, "rows vocab"], counts: Sequence[int]
) -> list[Float[Tensor, "_ vocab"]]:
    """Returns the rows of one part after another, `counts` of them; there may be rows to spare."""
    starts = (end - count for end, count in zip(accumulate(counts), counts, strict=True))
    return [
        torch.from_numpy(logits[start : start + count])
        for start, count in zip(starts, counts, strict=True)
    ]
