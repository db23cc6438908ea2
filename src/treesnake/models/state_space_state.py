"""The state of a text in a network with recurrent layers: a Mamba, a Mamba-2, or a hybrid.

A recurrent state cannot be cut back to an earlier length. So a state keeps snapshots where another
prompt is likely to part from the text: at the ends of prompts and answers, and at the borders that
prompts name.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from treesnake.errors import BrokenModelError
from treesnake.models.tree_network import Part, check_tokens, own_states
from treesnake.prompt import Prompt
from treesnake.states.held_text import HeldText
from treesnake.states.snapshots import KeptSnapshots, Snapshot
from treesnake.states.ssm import SsmBank
from treesnake.states.tree_layout import TreeLayout, tree_layout

logger = logging.getLogger(__name__)

HOST = torch.device("cpu")


@runtime_checkable
class TextMemory(Protocol):
    """What a network remembers of a text and its tree."""

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        ...

    @property
    def has_rows(self) -> bool:
        """Whether a part grows with the text, and lies there as long as the text begins so."""
        ...

    def commit(self, path: Sequence[int]) -> None:
        """Moves the text to the end of a path and forgets the tree; the path may be empty."""
        ...

    def reset(self) -> None:
        """Makes the text an empty one."""
        ...

    def mark(self) -> tuple[Shaped[Tensor, "..."], ...]:
        """Returns what `return_to` needs; if there are rows, without these."""
        ...

    def return_to(self, length: int, marked: Sequence[Shaped[Tensor, "..."]]) -> None:
        """Makes the text what it was; if there are rows, the text must still begin with it."""
        ...

    def copy(self) -> tuple[Shaped[Tensor, "..."], ...]:
        """Returns a copy of all of the text's part, for `restore` here or elsewhere.

        Like `mark`, it may move the text's part to where the text is.
        """
        ...

    def restore(self, length: int, copied: Sequence[Shaped[Tensor, "..."]]) -> None:
        """Makes the text that of a length whose `copy` this is."""
        ...


Memory = TypeVar("Memory", bound=TextMemory)


@runtime_checkable
class NodeMemory(TextMemory, Protocol):
    """What a packed network remembers of a text and its tree, in memory of a fixed place."""

    @property
    def bank(self) -> SsmBank:
        """Of which the memory has a slot; it says how nodes branch."""
        ...

    @property
    def num_pending(self) -> int:
        """Nodes that were committed and still have rows, the first ones: see `SsmState`."""
        ...

    def reserve(self, num_nodes: int) -> None:
        """Makes room for a tree of this many nodes; what is kept of nodes stays."""
        ...


Nodes = TypeVar("Nodes", bound=NodeMemory)


@dataclass(frozen=True, eq=False)
class GrownTree(Generic[Nodes]):
    """A text's tree with new nodes, which are to be run.

    Attributes:
        num_new: the number of new nodes.
        layout: how all nodes lie, on the host: those that are pending come first, the new ones
            last.
        memory: of the text and of the nodes before, with room for the new ones.
    """

    num_new: int
    layout: TreeLayout
    memory: Nodes


RunTrees = Callable[[Sequence[int], Sequence[GrownTree[Nodes]]], Sequence[Float[Tensor, "_ vocab"]]]
"""Runs the new nodes of some trees that branch in one way in one pass, given the tokens of one
tree's after another's; returns the logits of each tree."""


@runtime_checkable
class RecurrentNetwork(Protocol[Memory]):
    """What a state needs of its network."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens that it reads."""
        ...

    def run_text(self, token_ids: Sequence[int], memory: Memory) -> None:
        """Moves the text's part of a memory along some tokens."""
        ...

    def extend_all(self, parts: Sequence[Part]) -> list[Float[Tensor, "_ vocab"]]:
        """Appends nodes to the trees of several texts."""
        ...

    def broken_model_error(self, token_ids: Sequence[int]) -> BrokenModelError:
        """Returns the error for logits after these tokens that are no numbers."""
        ...


class StateSpaceState(Generic[Memory]):
    """A `TreeState` over a network with recurrent layers, which cannot be cut back.

    A change of the memory has several parts, and an interruption may come between any two of them.
    What is remembered then is no text at all, so nothing is held: the next look at the book empties
    it.

    Attributes:
        network: the weights.
        memory: what the network remembers of the text and its tree.
    """

    def __init__(self, network: RecurrentNetwork[Memory], memory: Memory) -> None:
        self.network = network
        self.memory = memory
        self._held = HeldText()
        self._is_changing = False
        self._kept = KeptSnapshots()

    @property
    def held(self) -> HeldText:
        """Which text and which tree it holds: none behind a change that did not end."""
        if self._is_changing:
            self._forget()
        return self._held

    @property
    def length(self) -> int:
        """The number of tokens in the text."""
        return self.held.length

    @property
    def num_bytes(self) -> int:
        """What the text takes in memory, with room for the largest tree so far.

        The snapshots that are kept are not counted: none of them grows with the text.
        """
        return self.memory.num_bytes

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last, and no tree.

        It goes on from the text that it holds, or else from the longest snapshot that it kept and
        that the prompt begins with. If this is interrupted, a beginning of the prompt is held,
        which may be empty.

        Raises:
            InvalidInputError: if the prompt brings inputs that the network does not read, or a
                token does not exist.
        """
        self._check_prompt(prompt)
        self._go_back(prompt)
        last = len(prompt) - 1
        borders = {border for border in prompt.borders if self.length < border < last}
        borders -= {inner for each in prompt.inputs for inner in range(each.start + 1, each.end)}
        for end in sorted(borders | ({last} if self.length < last else set())):
            begin = self.length
            with self._change() as held:
                self._run(prompt, begin, end)
                held.read(prompt.key[begin:end])
            self._keep()

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Appends nodes below earlier ones, or below the text (-1); returns logits after each."""
        return self.network.extend_all([Part(self, token_ids, parents)])[0]

    def commit(self, path: Sequence[int]) -> None:
        """Moves the text to the end of a path, without running anything, and forgets the tree.

        Raises:
            InvalidInputError: if `path` does not go down the tree from a child of the text.
        """
        self.held.check_path(path)
        with self._change() as held:
            self.memory.commit(path)
            held.commit(path)

    def snapshot(self) -> Snapshot:
        """Returns a copy of the text's memory."""
        with self._change() as held:
            return Snapshot(self.network, tuple(held.key), self.memory.copy())

    def restore(self, snapshot: Snapshot) -> None:
        """Makes the text that of a snapshot, which this or another state of the network took."""
        snapshot.check_network(self.network)
        with self._change() as held:
            self.memory.restore(len(snapshot.key), snapshot.tensors)
            held.cut(0)
            held.read(snapshot.key)

    def broken_model_error(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> BrokenModelError:
        """Returns the error for a network whose logits are no numbers, naming where."""
        return self.network.broken_model_error(token_ids)

    def _check_prompt(self, prompt: Prompt) -> None:
        """Checks that the network reads what a prompt brings."""
        prompt.check_text_only()
        check_tokens(prompt.token_ids, self.network.vocab_size)

    def _run(self, prompt: Prompt, begin: int, end: int) -> None:
        """Moves the memory along a part of a prompt, which cuts no input."""
        self.network.run_text(prompt.token_ids[begin:end], self.memory)

    def _go_back(self, prompt: Prompt) -> None:
        """Forgets the tree, and makes the text a beginning of the prompt, the longest there is."""
        held, num_shared = self.held.length, self.held.num_shared(prompt)
        self.held.forget_tree()
        self._keep()
        if num_shared == held:
            return
        # Rows are those of the held text, so that they serve no text beyond what is shared.
        snapshot = self._kept.longest(prompt, num_shared if self.memory.has_rows else None)
        logger.info(
            "the prompt parts from the text that is held at token %d of %d; it is run from token "
            "%d on, %s",
            num_shared,
            held,
            len(snapshot.key) if snapshot else 0,
            "the end of the longest snapshot that fits" if snapshot else "because no snapshot fits",
        )
        if snapshot is None:
            self._forget()
            return
        with self._change() as book:
            self.memory.return_to(len(snapshot.key), snapshot.tensors)
            book.cut(0)
            book.read(snapshot.key)

    def _keep(self) -> None:
        if self.length and not self._kept.has(self.held.key):
            with self._change() as held:
                mark = Snapshot(self.network, tuple(held.key), self.memory.mark())
            self._kept.keep(mark)

    @contextmanager
    def _change(self) -> Iterator[HeldText]:
        """Lets memory and book change together, or neither be trusted."""
        held = self.held
        self._is_changing = True
        yield held
        self._is_changing = False

    def _forget(self) -> None:
        """Makes the text empty; an interruption of this is one of a change, too."""
        self._is_changing = True
        self.memory.reset()
        self._held.cut(0)
        self._is_changing = False


class BorrowedState(StateSpaceState[Memory]):
    """A network's trees on the text of another's state."""

    def __init__(self, network: RecurrentNetwork[Memory], lender: StateSpaceState[Memory]) -> None:
        super().__init__(network, lender.memory)
        self._lender = lender

    @property
    def held(self) -> HeldText:
        """The text and the tree of both."""
        return self._lender.held

    def commit(self, path: Sequence[int]) -> None:
        """Moves the text of both to the end of a path."""
        self._lender.commit(path)


def extend_states(
    parts: Sequence[Part], network: RecurrentNetwork[Nodes], run_trees: RunTrees[Nodes]
) -> list[Float[Tensor, "_ vocab"]]:
    """Appends nodes to the trees of several texts: `TreeNetwork.extend_all` of these networks.

    Raises:
        InvalidInputError: if a tree cannot grow so, two parts have one state, or a token does not
            exist; nothing has changed then.
    """
    states: list[StateSpaceState[Nodes]] = own_states(parts, StateSpaceState, network)
    for state, part in zip(states, parts, strict=True):
        state.held.check_growth(part.token_ids, part.parents)
        check_tokens(part.token_ids, network.vocab_size)
    if not parts:
        return []
    trees = [grown_tree(state, part) for state, part in zip(states, parts, strict=True)]
    logits: dict[int, Float[Tensor, "_ vocab"]] = {}
    for kind in {type(tree.memory.bank.branching) for tree in trees}:
        chosen = [
            number for number, tree in enumerate(trees) if type(tree.memory.bank.branching) is kind
        ]
        token_ids = [token for number in chosen for token in parts[number].token_ids]
        results = run_trees(token_ids, [trees[number] for number in chosen])
        logits.update(zip(chosen, results, strict=True))
    for state, part in zip(states, parts, strict=True):
        state.held.append(part.token_ids, part.parents)
    return [logits[number] for number in range(len(parts))]


def grown_tree(state: StateSpaceState[Nodes], part: Part) -> GrownTree[Nodes]:
    """Returns the tree of a state with the nodes of a part, and makes room for them."""
    memory, parents = state.memory, (*state.held.parents, *part.parents)
    if pending := memory.num_pending:
        parents = (*range(-1, pending - 1), *(pending + parent for parent in parents))
    memory.reserve(len(parents))
    layout = tree_layout(parents, memory.bank.shape.conv_width, HOST)
    return GrownTree(len(part.parents), layout, memory)
