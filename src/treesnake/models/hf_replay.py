"""Models of transformers whose state nobody knows how to branch: copies of it, and replay.

The state is whatever the model returns as its cache. A tree is run branch by branch, each from a
copy of the state where it begins; a committed path that ends within a branch is run again. So any
model that can be stepped is a target, with the exact text. It is slower than a family that is
known: a tree takes a pass for each branch, and for each node where the model cannot continue a
state by several tokens at once.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from treesnake.errors import BrokenModelError, UnsupportedModelError
from treesnake.models.hf_diagnosis import broken_model_error
from treesnake.models.hf_families import check_decoder, context_length
from treesnake.models.hf_passes import CACHE_ARGUMENTS
from treesnake.models.hf_probe import check_scores
from treesnake.models.tree_network import Part, check_tokens, own_states
from treesnake.pauses import pause
from treesnake.prompt import Prompt
from treesnake.states.held_text import HeldText
from treesnake.states.snapshots import KeptSnapshots, Snapshot

logger = logging.getLogger(__name__)

STATES = (*CACHE_ARGUMENTS, "state")
"""How models call the state that they are given and return."""

_CONTINUES_AT_ONCE: WeakKeyDictionary["transformers.PreTrainedModel", bool] = WeakKeyDictionary()
"""What was found out about each living model."""


class HfReplay:
    """The weights of a model that can be stepped and nothing else.

    It runs a small tree first, once, and is refused if the result is not that of its own plain
    forward passes.

    Args:
        model: a decoder with a language-model head, in evaluation mode; it is used as it is.

    Raises:
        UnsupportedModelError: if it cannot go on from a copy of its state.
        InvalidInputError: if the model is in training mode.
    """

    def __init__(self, model: "transformers.PreTrainedModel") -> None:
        check_decoder(model)
        arguments = inspect.signature(model.forward).parameters
        named = [name for name in STATES if name in arguments]
        if not named:
            raise UnsupportedModelError(
                f"{type(model).__name__} takes no state to go on from, under any of the names "
                f"{', '.join(STATES)}"
            )
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self.vocab_size: int = self.config.vocab_size
        self.context_length = context_length(self.config)
        self._cache_name = named[0]
        self._takes_positions = "position_ids" in arguments
        self.continues_at_once = True
        if model not in _CONTINUES_AT_ONCE:
            _CONTINUES_AT_ONCE[model] = self._find_out()
            logger.warning(
                "%s keeps a state that treesnake cannot branch: each branch of a tree is a pass%s, "
                "from a copy of the state. The text is exact; speculation may well be slower than "
                "plain decoding",
                type(model).__name__,
                "" if self.continues_at_once else " for every token",
            )
        self.continues_at_once = _CONTINUES_AT_ONCE[model]

    def new_state(self) -> "HfReplayState":
        """Returns the state of an empty text."""
        return HfReplayState(self)

    def extend_all(self, parts: Sequence[Part]) -> list[Float[Tensor, "_ vocab"]]:
        """Appends nodes to the trees of several texts, one after the other.

        Raises:
            InvalidInputError: if a tree cannot grow so, or two parts have one state.
        """
        states = own_states(parts, HfReplayState, self)
        for state, part in zip(states, parts, strict=True):
            state.held.check_growth(part.token_ids, part.parents)
            check_tokens(part.token_ids, self.vocab_size)
        return [state.grow(part) for state, part in zip(states, parts, strict=True)]

    def run(
        self, cache: Any, token_ids: Sequence[int], position: int
    ) -> tuple[Any, Float[Tensor, "tokens vocab"]]:
        """Runs tokens that continue a state, which may be changed; returns that after them.

        Args:
            cache: the state, which is None for an empty text.
            token_ids: the tokens.
            position: where the first of them stands.
        """
        at_once = cache is None or self.continues_at_once
        size = len(token_ids) if at_once else 1
        rows: list[Tensor] = []
        for start in range(0, len(token_ids), size):
            cache, logits = self._pass(cache, token_ids[start : start + size], position + start)
            rows.append(logits)
        return cache, torch.cat(rows)

    @torch.no_grad()
    def _pass(
        self, cache: Any, token_ids: Sequence[int], position: int
    ) -> tuple[Any, Float[Tensor, "tokens vocab"]]:
        device = self.model.device
        options: dict[str, Any] = {self._cache_name: cache}
        if self._takes_positions:
            end = position + len(token_ids)
            options["position_ids"] = torch.arange(position, end, device=device)[None]
        outputs = self.model(
            input_ids=torch.tensor([token_ids], device=device), use_cache=True, **options
        )
        return outputs[self._cache_name], outputs.logits[0]

    def _find_out(self) -> bool:
        """Tells whether the model continues a state by several tokens as by one after another."""
        try:
            check_scores(self.model, self.new_state())
        except UnsupportedModelError:
            self.continues_at_once = False
            check_scores(self.model, self.new_state())
        return self.continues_at_once


@dataclass(frozen=True, eq=False)
class ReplaySnapshot(Snapshot):
    """A snapshot of a state of unknown form."""

    cache: Any


class HfReplayState:
    """A `TreeState` of a model that is replayed.

    Attributes:
        network: the weights.
        held: which text and which tree it holds.
    """

    def __init__(self, network: HfReplay) -> None:
        self.network = network
        self.held = HeldText()
        self._committed: Any = None
        self._nodes: dict[int, Any] = {}
        self._kept = KeptSnapshots()

    @property
    def length(self) -> int:
        """The number of tokens in the text."""
        return self.held.length

    @property
    def num_bytes(self) -> int:
        """What the text takes in memory, as far as its form is known."""
        tensors = {id(tensor): tensor for tensor in _tensors(self._committed)}
        return sum(tensor.nbytes for tensor in tensors.values())

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last, and no tree.

        Raises:
            InvalidInputError: if the prompt is more than token ids, or a token does not exist.
        """
        prompt.check_text_only()
        check_tokens(prompt.token_ids, self.network.vocab_size)
        self.commit(())
        self._keep()
        if self.held.num_shared(prompt) < self.length:
            self._go_back(self._kept.longest(prompt))
        last = len(prompt) - 1
        borders = {border for border in prompt.borders if self.length < border < last}
        for end in sorted(borders | ({last} if self.length < last else set())):
            pause()
            start, before = self.length, self._committed
            self._go_back(None)
            tokens = prompt.token_ids[start:end]
            self._committed, _ = self.network.run(before, tokens, start)
            self.held.read(prompt.key[:end])
            self._keep()

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Appends nodes below earlier ones, or below the text (-1); returns logits after each."""
        return self.network.extend_all([Part(self, token_ids, parents)])[0]

    def grow(self, part: Part) -> Float[Tensor, "new_nodes vocab"]:
        """Runs the new nodes branch by branch; the part was checked."""
        before = len(self.held.tokens)
        kept = {node: cache for node, cache in self._nodes.items() if node < before}
        rows: list[Tensor] = []
        tokens = [*self.held.tokens, *part.token_ids]
        parents = (*self.held.parents, *part.parents)
        for branch in _branches(parents, before):
            start = parents[branch[0]]
            cache = self._state_after(start, tokens, parents, kept)
            position = self.length + _depth(parents, branch[0])
            given = tokens[branch[0] : branch[-1] + 1]
            kept[branch[-1]], logits = self.network.run(cache, given, position)
            rows.append(logits)
        self.held.append(part.token_ids, part.parents)
        self._nodes = kept
        return torch.cat(rows)

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path into the text and forgets the tree; the path may be empty.

        Raises:
            InvalidInputError: if `path` does not go down the tree from a child of the text.
        """
        self.held.check_path(path)
        if path:
            parents = self.held.parents
            self._committed = self._state_after(path[-1], self.held.tokens, parents, self._nodes)
        self.held.commit(path)
        self._nodes = {}

    def snapshot(self) -> Snapshot:
        """Returns a copy of the state."""
        cache = deepcopy(self._committed)
        tensors = tuple(_tensors(cache))
        return ReplaySnapshot(self.network, tuple(self.held.key), tensors, cache)

    def restore(self, snapshot: Snapshot) -> None:
        """Makes the text that of a snapshot, which this or another state of the network took."""
        snapshot.check_network(self.network)
        self._go_back(snapshot)

    def broken_model_error(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> BrokenModelError:
        """Returns the error for a model whose logits are no numbers, naming weights or module."""
        network = self.network
        return broken_model_error(network.model, lambda: network.run(None, token_ids, 0))

    def _go_back(self, snapshot: Snapshot | None) -> None:
        """Makes the text that of a snapshot, or an empty one."""
        self.held.cut(0)
        self._committed = None
        self._nodes = {}
        if isinstance(snapshot, ReplaySnapshot):
            self._committed = deepcopy(snapshot.cache)
            self.held.read(snapshot.key)

    def _keep(self) -> None:
        if self.length and not self._kept.has(self.held.key):
            self._kept.keep(self.snapshot())

    def _state_after(
        self, node: int, tokens: Sequence[int], parents: Sequence[int], kept: dict[int, Any]
    ) -> Any:
        """Returns a copy of the state after a node, run again from the last one that was kept."""
        missing: list[int] = []
        while node >= 0 and node not in kept:
            missing.insert(0, node)
            node = parents[node]
        cache = deepcopy(self._committed if node < 0 else kept[node])
        if not missing:
            return cache
        position = self.length + _depth(parents, missing[0])
        return self.network.run(cache, [tokens[each] for each in missing], position)[0]


def _branches(parents: Sequence[int], begin: int) -> Iterator[range]:
    """Yields runs of nodes of which each continues the one before, from a node on."""
    start = begin
    for node in range(begin + 1, len(parents) + 1):
        if node == len(parents) or parents[node] != node - 1:
            yield range(start, node)
            start = node


def _depth(parents: Sequence[int], node: int) -> int:
    return 0 if parents[node] < 0 else 1 + _depth(parents, parents[node])


def _tensors(cache: object) -> Iterator[Tensor]:
    """Yields the tensors of a state of unknown form."""
    if isinstance(cache, Tensor):
        yield cache
        return
    if isinstance(cache, dict):
        parts = list(cache.values())
    elif isinstance(cache, (list, tuple)):
        parts = list(cache)
    else:
        parts = list(getattr(cache, "__dict__", {}).values())
    for part in parts:
        yield from _tensors(part)
