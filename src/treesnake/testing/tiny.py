"""Toy language models with random weights: small enough to enumerate, real enough to be wrong.

Three kinds of state: a table has next to none, attention keeps a row per token, and a recurrent
model folds all of the text into one vector, which no one can roll back by cutting off its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.drafters.model_drafter import ModelDrafter
from treesnake.prompt import Prompt, missing_tokens
from treesnake.tree import TokenTree


@runtime_checkable
class TinyModel(Protocol):
    """A language model as one function: the state after a token, and the logits there.

    States are of any type and never changed in place.
    """

    vocab_size: int

    def initial(self) -> Any:
        """Returns the state before any token."""
        ...

    def step(self, state: Any, token: int) -> tuple[Any, Float[Tensor, " vocab"]]:
        """Returns the state after one more token and the logits of the token after it."""
        ...


class TableModel:
    """The next token depends on the last `order` tokens, by a random table.

    Args:
        vocab_size: the number of tokens.
        order: how far back the model looks.
        seed: which table.
        sharpness: the standard deviation of the logits.
    """

    def __init__(
        self, vocab_size: int, *, order: int = 1, seed: int = 0, sharpness: float = 1.5
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocab_size = vocab_size
        self._order = order
        self._table = sharpness * torch.randn(
            *(vocab_size,) * order, vocab_size, generator=generator
        )

    def initial(self) -> tuple[int, ...]:
        """Returns a past of zeros."""
        return (0,) * self._order

    def step(
        self, state: tuple[int, ...], token: int
    ) -> tuple[tuple[int, ...], Float[Tensor, " vocab"]]:
        """Returns the last tokens and their row of the table."""
        recent = (*state, token)[-self._order :]
        return recent, self._table[recent]


class RecurrentModel:
    """A recurrent network with a state of fixed size: h = tanh(W h + E[token]), logits = U h."""

    def __init__(self, vocab_size: int, *, width: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocab_size = vocab_size
        self._transition = torch.randn(width, width, generator=generator) / width**0.5
        self._embedding = torch.randn(vocab_size, width, generator=generator)
        self._output = torch.randn(vocab_size, width, generator=generator)

    def initial(self) -> Float[Tensor, " width"]:
        """Returns zeros."""
        return torch.zeros(self._transition.shape[0])

    def step(
        self, state: Float[Tensor, " width"], token: int
    ) -> tuple[Float[Tensor, " width"], Float[Tensor, " vocab"]]:
        """Returns the next state and its logits."""
        state = torch.tanh(self._transition @ state + self._embedding[token])
        return state, self._output @ state


class AttentionModel:
    """One attention head with rotating positions over all earlier tokens."""

    def __init__(self, vocab_size: int, *, width: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocab_size = vocab_size
        self._width = width
        self._query, self._key, self._value = torch.randn(3, width, width, generator=generator)
        self._embedding = torch.randn(vocab_size, width, generator=generator)
        self._output = torch.randn(vocab_size, width, generator=generator)

    def initial(self) -> Float[Tensor, "rows width"]:
        """Returns an empty cache."""
        return torch.zeros(0, self._width)

    def step(
        self, state: Float[Tensor, "rows width"], token: int
    ) -> tuple[Float[Tensor, "longer width"], Float[Tensor, " vocab"]]:
        """Returns the cache with one more row, and the logits after attending to all rows."""
        position = torch.full((self._width,), float(len(state)))
        row = self._embedding[token] + torch.sin(position * torch.arange(1, self._width + 1))
        rows = torch.cat([state, row[None]])
        scores = (rows @ self._key) @ (self._query @ row) / self._width**0.5
        mixed = scores.softmax(0) @ (rows @ self._value)
        return rows, self._output @ torch.tanh(mixed)


@dataclass(eq=False)
class TinyState:
    """A `TreeModel` over a tiny model: one committed state, and one for each node of the tree."""

    model: TinyModel
    held: list[int] = field(default_factory=list)
    nodes: list[tuple[int, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = self.model.initial()

    def prefill(self, token_ids: Sequence[int]) -> None:
        """Makes the state hold exactly these tokens."""
        missing = missing_tokens(self.held, token_ids)
        if missing is None:
            self.state = self.model.initial()
            self.held.clear()
            missing = list(token_ids)
        self.nodes = []
        for token in missing:
            self.state, _ = self.model.step(self.state, token)
            self.held.append(token)

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Steps each new node from its parent's state."""
        rows = []
        for token, parent in zip(token_ids, parents, strict=True):
            before = self.state if parent < 0 else self.nodes[parent][1]
            after, logits = self.model.step(before, token)
            self.nodes.append((token, after))
            rows.append(logits)
        return torch.stack(rows)

    def commit(self, path: Sequence[int]) -> None:
        """Makes the state of the path's last node the committed one."""
        for node in path:
            token, self.state = self.nodes[node]
            self.held.append(token)
        self.nodes = []


@dataclass(eq=False)
class TinyTarget:
    """A target session over a tiny model."""

    state: TinyState
    context_length: int | None

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return self.state.model.vocab_size

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last."""
        prompt.check(self.vocab_size, self.context_length)
        self.state.prefill(prompt.token_ids[:-1])

    def score(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
        """Returns the logits after each node."""
        self.state.nodes = []
        return self.state.extend(tree.tokens, tree.parent_list)

    def commit(self, path: Sequence[int]) -> None:
        """Takes the path's tokens into the state."""
        self.state.commit(path)


@dataclass(frozen=True)
class TinyTargetModel:
    """Makes target sessions over one tiny model."""

    model: TinyModel
    context_length: int | None = None

    def new_session(self) -> TinyTarget:
        """Returns a session with an empty state."""
        return TinyTarget(TinyState(self.model), self.context_length)


@dataclass(frozen=True)
class TinyDrafterModel:
    """Makes drafter sessions over one tiny model."""

    model: TinyModel

    def new_session(self) -> ModelDrafter:
        """Returns a session with an empty state."""
        return ModelDrafter(TinyState(self.model))
