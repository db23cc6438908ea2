"""Toy language models with random weights: small enough to enumerate, real enough to be wrong.

Three kinds of state: a table has next to none, attention keeps a row per token, and a recurrent
model folds all of the text into one vector, which no one can roll back by cutting off its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.errors import BrokenModelError
from treesnake.models.tree_network import Part, check_tokens, own_states
from treesnake.prompt import Prompt
from treesnake.states.held_text import HeldText
from treesnake.states.snapshots import Snapshot


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


@dataclass(frozen=True)
class TinyNetwork:
    """A `TreeNetwork` over a tiny model.

    Attributes:
        model: the language model as one function.
        context_length: the number of tokens that fit, or None if there is no limit.
        reads_inputs: whether it plays a model that sees images.
    """

    model: TinyModel
    context_length: int | None = None
    reads_inputs: bool = True

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return self.model.vocab_size

    def new_state(self) -> "TinyState":
        """Returns the state of an empty text."""
        return TinyState(self.model)

    def extend_all(self, parts: Sequence[Part]) -> list[Float[Tensor, "_ vocab"]]:
        """Extends one text after the other."""
        for state, part in zip(own_states(parts, TinyState, self.model), parts, strict=True):
            state.check_growth(part.token_ids, part.parents)
        return [part.state.extend(part.token_ids, part.parents) for part in parts]


class TinyState:
    """A `TreeState` over a tiny model: one committed state, and one for each node of the tree.

    An image or a sound is read as one more token, made of its digest, in front of its placeholders.
    """

    def __init__(self, model: TinyModel) -> None:
        self.network = model
        self._held = HeldText()
        self._committed = model.initial()
        self._nodes: list[Any] = []

    @property
    def length(self) -> int:
        """The number of tokens in the text."""
        return self._held.length

    @property
    def num_bytes(self) -> int:
        """Nothing worth counting."""
        return 0

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last."""
        if self._held.num_shared(prompt) < self._held.length:
            self._held.cut(0)
            self._committed = self.network.initial()
        self.commit(())
        read_before = {each.start: each for each in prompt.inputs}
        for index in range(self._held.length, len(prompt) - 1):
            if index in read_before:
                token = int(read_before[index].digest, 16) % self.network.vocab_size
                self._committed, _ = self.network.step(self._committed, token)
            self._committed, _ = self.network.step(self._committed, prompt.token_ids[index])
        self._held.read(prompt.key[self._held.length : -1])

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Steps each new node from its parent's state."""
        self.check_growth(token_ids, parents)
        rows = []
        for token, parent in zip(token_ids, parents, strict=True):
            before = self._committed if parent < 0 else self._nodes[parent]
            after, logits = self.network.step(before, token)
            self._nodes.append(after)
            rows.append(logits)
        self._held.append(token_ids, parents)
        return torch.stack(rows)

    def check_growth(self, token_ids: Sequence[int], parents: Sequence[int]) -> None:
        """Raises InvalidInputError if the tree cannot grow so."""
        self._held.check_growth(token_ids, parents)
        check_tokens(token_ids, self.network.vocab_size)

    def commit(self, path: Sequence[int]) -> None:
        """Makes the state of the path's last node the committed one."""
        self._held.check_path(path)
        if path:
            self._committed = self._nodes[path[-1]]
        self._held.commit(path)
        self._nodes = []

    def snapshot(self) -> Snapshot:
        """Returns the committed state, which nobody changes in place."""
        return TinySnapshot(self.network, tuple(self._held.key), (), self._committed)

    def restore(self, snapshot: Snapshot) -> None:
        """Makes the text that of a snapshot."""
        snapshot.check_network(self.network)
        assert isinstance(snapshot, TinySnapshot)
        self.commit(())
        self._held.cut(0)
        self._held.read(snapshot.key)
        self._committed = snapshot.committed

    def broken_model_error(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> BrokenModelError:
        """Returns the error for a table whose numbers are none."""
        return BrokenModelError("the logits of the tiny model are no numbers; make it anew")


@dataclass(frozen=True, eq=False)
class TinySnapshot(Snapshot):
    """A snapshot of a tiny model's state, whatever that is."""

    committed: Any
