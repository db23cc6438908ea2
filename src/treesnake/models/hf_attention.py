"""Any attention model of transformers with token trees: unmodified, through its public interface.

The nodes of a tree go in as one row of tokens; a mask lets each see the text and its ancestors, and
explicit positions tell each how deep it is. Their keys and values land in a cache of ours, behind
those of the text, where the rows of the committed path are kept. Trees of several texts go in as
one row each, filled up to the longest.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from treesnake.errors import BrokenModelError
from treesnake.models.hf_diagnosis import broken_model_error
from treesnake.models.hf_families import (
    VERIFIED_FAMILIES,
    activation_width,
    can_share_passes,
    check_supported,
    context_length,
    read_layout,
)
from treesnake.models.hf_masks import PaddedTrees, Span, tree_mask
from treesnake.models.hf_probe import check_scores_once
from treesnake.models.tree_network import Part, check_tokens, own_states
from treesnake.prompt import Prompt
from treesnake.states.held_text import HeldText
from treesnake.states.kv import KvCache
from treesnake.states.shared_kv import NewRows, SharedKvCache
from treesnake.states.snapshots import Snapshot
from treesnake.states.tree_layout import TreeLayout, tree_layout

PREFILL_BYTES = 64 * 2**20
"""What a pass over a part of a long prompt may take, about, beside weights and cache."""

Masks = Tensor | dict[str, Tensor] | None
"""One mask for all layers, one for each kind of layers, or the model's own causal ones."""


class HfAttention:
    """The weights of a transformers model, shared by the states of many texts.

    A model of a family that is not among `VERIFIED_FAMILIES` runs one small tree first, once, and
    is refused if the result is not that of its own plain forward passes.

    Args:
        model: a decoder with a language-model head, in evaluation mode, that attends with "sdpa" or
            "eager"; it is used as it is and left as it is.

    Raises:
        UnsupportedModelError: if the model cannot run trees, with the reason.
        InvalidInputError: if the model is in training mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        check_supported(model)
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self.layout = read_layout(self.config)
        self.vocab_size: int = self.config.vocab_size
        self.context_length = context_length(self.config)
        self._can_skip_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._can_share_passes = can_share_passes(self.config)
        if self.config.model_type not in VERIFIED_FAMILIES:
            check_scores_once(model, self.new_state())

    def new_state(self) -> "HfAttentionState":
        """Returns the state of an empty text."""
        return HfAttentionState(self)

    def extend_all(self, parts: Sequence[Part]) -> list[Float[Tensor, "_ vocab"]]:
        """Appends nodes to the trees of several texts in one pass over the weights.

        A model that reads more than masks and positions runs one text after the other.

        Raises:
            InvalidInputError: if a tree cannot grow so, or two parts have one state.
        """
        states = own_states(parts, HfAttentionState, self)
        growths = [self._growth(state, part) for state, part in zip(states, parts, strict=True)]
        if len(parts) > 1 and self._can_share_passes:
            logits = self._run_together(growths)
        else:
            logits = [self._run_alone(growth) for growth in growths]
        for growth in growths:
            growth.state.text.append(growth.token_ids, growth.parents[-growth.num_new :])
        return logits

    def read(self, cache: KvCache, prompt: Prompt, start: int, end: int) -> None:
        """Runs some tokens of a prompt; the cache holds the rows of those before them."""
        positions = torch.arange(start, end)[None]
        self.forward(cache, [prompt.token_ids[start:end]], positions, skip_logits=True)

    @torch.no_grad()
    def forward(
        self,
        cache: Cache,
        token_ids: Sequence[Sequence[int]],
        positions: Int[Tensor, "texts new"],
        masks: Masks = None,
        *,
        skip_logits: bool = False,
    ) -> Float[Tensor, "texts scored vocab"]:
        """Runs new tokens, appends their rows to a cache and returns the logits after them.

        Args:
            cache: what the tokens continue.
            token_ids: the new tokens of each text, equally many.
            positions: where in its text each stands.
            masks: what they may see; by default each sees all before it.
            skip_logits: whether the logits of all tokens but the last may be left out.
        """
        device = self.model.device
        options: dict[str, Any] = {}
        if skip_logits and self._can_skip_logits:
            options["logits_to_keep"] = 1
        outputs = self.model(
            input_ids=torch.tensor(token_ids, device=device),
            position_ids=positions.to(device),
            attention_mask=masks,
            past_key_values=cache,
            use_cache=True,
            **options,
        )
        return outputs.logits

    def part_size(self, num_tokens: int) -> int:
        """Returns how many tokens of a prompt to run at once, so that memory stays flat."""
        width = activation_width(self.config, num_tokens)
        if not self._can_skip_logits:
            width += self.vocab_size
        return max(PREFILL_BYTES // (width * self.model.dtype.itemsize), 16)

    def _growth(self, state: "HfAttentionState", part: Part) -> "_Growth":
        """Checks a part; drops the rows of nodes that an interrupted pass did not append."""
        state.text.check_growth(part.token_ids, part.parents)
        check_tokens(part.token_ids, self.vocab_size)
        state.cache.keep(state.text.length + len(state.text.tokens))
        return _Growth(state, part.token_ids, (*state.text.parents, *part.parents))

    def _run_alone(self, growth: "_Growth") -> Float[Tensor, "new vocab"]:
        tree = growth.layout(self.model.device)
        positions = growth.num_held + tree.depths[-growth.num_new :]
        masks: Masks = None
        if not growth.is_chain:  # for which the model has masks
            visible = tree.ancestor_mask[-growth.num_new :]
            masks = self._masks(
                lambda span: tree_mask(
                    visible, tree.depths, growth.num_held, span, self.model.dtype
                )
            )
        return self.forward(growth.state.cache, [growth.token_ids], positions[None], masks)[0]

    def _run_together(self, growths: Sequence["_Growth"]) -> list[Float[Tensor, "_ vocab"]]:
        num_held = tuple(growth.num_held for growth in growths)
        num_nodes = tuple(len(growth.parents) for growth in growths)
        num_new = tuple(growth.num_new for growth in growths)
        trees = PaddedTrees.of(
            [growth.layout(torch.device("cpu")) for growth in growths],
            num_new,
            num_held,
            self.model.device,
        )
        sizes = zip(num_held, num_nodes, num_new, strict=True)
        new_rows = NewRows(tuple(held + nodes - new for held, nodes, new in sizes), num_new)
        cache = SharedKvCache([growth.state.cache for growth in growths], new_rows)
        token_ids = [growth.padded_token_ids(max(num_new)) for growth in growths]
        masks = self._masks(lambda span: trees.mask(span, self.model.dtype))
        logits = self.forward(cache, token_ids, trees.positions, masks)
        return [logits[text, :new] for text, new in enumerate(num_new)]

    def _masks(self, make: Callable[[Span], Tensor]) -> Masks:
        """Returns a mask for each kind of layers, by name, where there are several."""
        masks = {kind: make(span) for kind, span in self.layout.spans.items()}
        return masks if len(masks) > 1 else masks.popitem()[1]


@dataclass(frozen=True, eq=False)
class _Growth:
    """What a text adds to a pass.

    Attributes:
        state: the text.
        token_ids: those of the new nodes.
        parents: those of all nodes, the new ones last.
    """

    state: "HfAttentionState"
    token_ids: Sequence[int]
    parents: tuple[int, ...]

    @property
    def num_held(self) -> int:
        """The number of tokens in the text."""
        return self.state.text.length

    @property
    def num_new(self) -> int:
        """The number of new nodes."""
        return len(self.token_ids)

    @property
    def is_chain(self) -> bool:
        """Whether each node of the tree continues the one before it."""
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    def layout(self, device: torch.device) -> TreeLayout:
        """Returns the layout of the tree with the new nodes."""
        return tree_layout(self.parents, conv_width=1, device=device)

    def padded_token_ids(self, num_tokens: int) -> list[int]:
        """Returns the new tokens, and copies of the last for as many as are missing."""
        return [*self.token_ids, *[self.token_ids[-1]] * (num_tokens - self.num_new)]


class HfAttentionState:
    """The tokens of one text and their rows in a cache, and behind them those of a growing tree.

    Attributes:
        network: the weights.
        text: the tokens held, and the tree so far.
        cache: their rows, and rows of nodes that an interrupted pass did not append; these are
            dropped by the next call.
    """

    def __init__(self, network: HfAttention) -> None:
        self.network = network
        self.text = HeldText()
        self.cache = KvCache(network.layout.has_rows)

    @property
    def length(self) -> int:
        """The number of tokens in the text."""
        return self.text.length

    @property
    def num_bytes(self) -> int:
        """What the text takes in memory."""
        return self.cache.num_bytes(self.text.length)

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last, and no tree.

        The part of the text that the prompt begins with is kept. A long prompt runs part by part,
        and if that is interrupted, the state holds the parts that were finished.

        Raises:
            InvalidInputError: if the prompt brings inputs.
        """
        prompt.check_text_only()
        check_tokens(prompt.token_ids, self.network.vocab_size)
        self._cut(self.text.num_shared(prompt))
        num_tokens = len(prompt) - 1
        size = self.network.part_size(num_tokens)
        for start in range(self.text.length, num_tokens, size):
            end = min(start + size, num_tokens)
            self.network.read(self.cache, prompt, start, end)
            self.text.read(prompt.key[start:end])

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Appends nodes below earlier ones, or below the text (-1); returns logits after each."""
        return self.network.extend_all([Part(self, token_ids, parents)])[0]

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path into the text and forgets the tree; the path may be empty.

        Raises:
            InvalidInputError: if `path` does not go down the tree from a child of the text.
        """
        self.text.check_path(path)
        self.cache.keep(self.text.length, path)
        self.text.commit(path)

    def snapshot(self) -> Snapshot:
        """Returns copies of the text's rows."""
        return Snapshot(self.network, tuple(self.text.key), self.cache.copy(self.text.length))

    def restore(self, snapshot: Snapshot) -> None:
        """Makes the text that of a snapshot, which this or another state of the network took."""
        snapshot.check_network(self.network)
        self._cut(0)
        self.cache.restore(snapshot.tensors)
        self.text.read(snapshot.key)

    def broken_model_error(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> BrokenModelError:
        """Returns the error for a model whose logits are no numbers, naming weights or module."""

        def rerun() -> None:
            self._cut(self.text.length)
            self.extend(token_ids, parents)

        error = broken_model_error(self.network.model, rerun)
        self._cut(self.text.length)
        return error

    def _cut(self, length: int) -> None:
        """Forgets the tree, and the text from a length on."""
        self.text.cut(length)
        self.cache.keep(length)
