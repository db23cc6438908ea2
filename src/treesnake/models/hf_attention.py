"""Any attention model of transformers with token trees: unmodified, through its public interface.

The nodes of a tree go in as one row of tokens; a mask lets each see the text and its ancestors, and
explicit positions tell each how deep it is. Their keys and values land in a cache of ours, behind
those of the text, where the rows of the committed path are kept.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from treesnake.errors import BrokenModelError
from treesnake.models.hf_diagnosis import broken_model_error
from treesnake.models.hf_families import (
    VERIFIED_FAMILIES,
    activation_width,
    check_supported,
    context_length,
    read_layout,
)
from treesnake.models.hf_masks import tree_mask
from treesnake.models.hf_probe import check_scores_once
from treesnake.prompt import num_shared
from treesnake.states.kv import KvCache
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
        if self.config.model_type not in VERIFIED_FAMILIES:
            check_scores_once(model, self.new_state())

    def new_state(self) -> "HfAttentionState":
        """Returns the state of an empty text."""
        return HfAttentionState(self)

    @torch.no_grad()
    def forward(
        self,
        cache: KvCache,
        token_ids: Sequence[int],
        positions: Int[Tensor, " new"],
        masks: Masks = None,
        *,
        skip_logits: bool = False,
    ) -> Float[Tensor, "scored vocab"]:
        """Runs new tokens, appends their rows to a cache and returns the logits after them.

        Args:
            cache: what the tokens continue.
            token_ids: the new tokens.
            positions: where in the text each stands.
            masks: what they may see; by default each sees all before it.
            skip_logits: whether the logits of all tokens but the last may be left out.
        """
        device = self.model.device
        options: dict[str, Any] = {}
        if skip_logits and self._can_skip_logits:
            options["logits_to_keep"] = 1
        outputs = self.model(
            input_ids=torch.tensor([token_ids], device=device),
            position_ids=positions[None].to(device),
            attention_mask=masks,
            past_key_values=cache,
            use_cache=True,
            **options,
        )
        return outputs.logits[0]

    def masks(self, tree: TreeLayout, num_new: int, num_held: int) -> Masks:
        """Returns what the newest nodes of a tree may see."""
        visible, depths = tree.ancestor_mask[-num_new:], depths_of(tree)
        masks = {
            kind: tree_mask(visible, depths, num_held, span, self.model.dtype)
            for kind, span in self.layout.spans.items()
        }
        return masks if len(masks) > 1 else masks.popitem()[1]

    def part_size(self, num_tokens: int) -> int:
        """Returns how many tokens of a prompt to run at once, so that memory stays flat."""
        width = activation_width(self.config, num_tokens)
        if not self._can_skip_logits:
            width += self.vocab_size
        return max(PREFILL_BYTES // (width * self.model.dtype.itemsize), 16)


class HfAttentionState:
    """The tokens of one text and their rows in a cache, and behind them those of a growing tree."""

    def __init__(self, network: HfAttention) -> None:
        self.network = network
        self._cache = KvCache(network.layout.has_rows)
        self._held: list[int] = []
        self._tokens: list[int] = []
        self._parents: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """The number of tokens in the text."""
        return len(self._held)

    def prefill(self, token_ids: Sequence[int]) -> None:
        """Makes the state hold exactly these tokens; those that it holds already are kept.

        A long text runs part by part, and if that is interrupted, the state holds the parts that
        were finished.
        """
        del self._held[num_shared(self._held, token_ids) :]
        self._forget_tree()
        size = self.network.part_size(len(token_ids))
        for start in range(len(self._held), len(token_ids), size):
            part = token_ids[start : start + size]
            positions = torch.arange(start, start + len(part))
            self.network.forward(self._cache, part, positions, skip_logits=True)
            self._held += part

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Appends nodes below earlier ones, or below the text (-1); returns logits after each."""
        num_held, num_new = len(self._held), len(token_ids)
        # A pass that was interrupted may have left rows of nodes that were never appended.
        self._cache.keep(num_held + len(self._tokens))
        grown = (*self._parents, *parents)
        tree = tree_layout(grown, conv_width=1, device=self.network.model.device)
        is_chain = grown == tuple(range(-1, len(grown) - 1))  # for which the model has masks
        masks = None if is_chain else self.network.masks(tree, num_new, num_held)
        positions = num_held + depths_of(tree)[-num_new:]
        logits = self.network.forward(self._cache, token_ids, positions, masks)
        self._tokens += token_ids
        self._parents = grown
        return logits

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path into the text and forgets the tree."""
        tokens = [self._tokens[node] for node in path]
        self._cache.keep(len(self._held), path)
        self._held += tokens
        self._forget_tree()

    def broken_model_error(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> BrokenModelError:
        """Returns the error for a model whose logits are no numbers, naming weights or module."""

        def rerun() -> None:
            self._forget_tree()
            self.extend(token_ids, parents)

        return broken_model_error(self.network.model, rerun)

    def _forget_tree(self) -> None:
        self._cache.keep(len(self._held))
        self._tokens = []
        self._parents = ()


def depths_of(tree: TreeLayout) -> Int[Tensor, " nodes"]:
    """Returns how far each node is below the text; 0 is right behind it."""
    return tree.ancestor_mask.sum(-1) - 1
