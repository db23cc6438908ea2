"""Any attention model of transformers as a target: unmodified, through its public interface.

A tree is scored in one forward pass. Its nodes go in as one row of tokens; a mask lets each see the
text and its ancestors, and explicit positions tell each how deep it is. Their keys and values land
in a cache of ours, behind those of the text, where the rows of the accepted path are kept.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.prompt import Prompt, num_shared
from treesnake.states.kv import KvCache
from treesnake.targets.diagnosis import broken_model_error
from treesnake.targets.families import (
    VERIFIED_FAMILIES,
    activation_width,
    check_supported,
    context_length,
    read_layout,
)
from treesnake.targets.masks import tree_mask
from treesnake.targets.probe import check_scores
from treesnake.tree import TokenTree

PREFILL_BYTES = 64 * 2**20
"""What a pass over a part of a long prompt may take, about, beside weights and cache."""

Masks = Tensor | dict[str, Tensor] | None
"""One mask for all layers, one for each kind of layers, or the model's own causal ones."""


class AttentionTargetModel:
    """The weights of a transformers model, shared by its sessions.

    A model of a family that is not among `VERIFIED_FAMILIES` scores one small tree first and is
    refused if the result is not that of its own plain forward passes.

    Args:
        model: a decoder with a language-model head, in evaluation mode, that attends with "sdpa" or
            "eager"; it is used as it is and left as it is.

    Raises:
        UnsupportedModelError: if the model cannot score trees, with the reason.
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
            check_scores(model, self.new_session())

    def new_session(self) -> "AttentionTarget":
        """Returns a session with an empty cache."""
        return AttentionTarget(self)

    @torch.no_grad()
    def extend(
        self,
        cache: KvCache,
        token_ids: Int[Tensor, " new"],
        depths: Int[Tensor, " new"],
        masks: Masks = None,
        *,
        skip_logits: bool = False,
    ) -> Float[Tensor, "scored vocab"]:
        """Runs new tokens, appends their rows to a cache and returns the logits after them.

        Args:
            cache: what the tokens continue.
            token_ids: the new tokens.
            depths: how far each is from the first position that the cache does not hold.
            masks: what they may see; by default each sees all before it.
            skip_logits: whether the logits of all tokens but the last may be left out.
        """
        device = self.model.device
        options: dict[str, Any] = {}
        if skip_logits and self._can_skip_logits:
            options["logits_to_keep"] = 1
        outputs = self.model(
            input_ids=token_ids[None].to(device),
            position_ids=(cache.get_seq_length() + depths)[None].to(device),
            attention_mask=masks,
            past_key_values=cache,
            use_cache=True,
            **options,
        )
        return outputs.logits[0]

    def masks(self, tree: TokenTree, num_held: int) -> Masks:
        """Returns what the nodes of a tree may see. A chain needs no mask but the model's own."""
        if tree.is_chain:
            return None
        spans = self.layout.spans
        masks = {
            kind: tree_mask(tree, num_held, span, self.model.dtype, self.model.device)
            for kind, span in spans.items()
        }
        return masks if len(masks) > 1 else masks.popitem()[1]

    def part_size(self, num_tokens: int) -> int:
        """Returns how many tokens of a prompt to run at once, so that memory stays flat."""
        width = activation_width(self.config, num_tokens)
        if not self._can_skip_logits:
            width += self.vocab_size
        return max(PREFILL_BYTES // (width * self.model.dtype.itemsize), 16)


class AttentionTarget:
    """A target session: the tokens of one text and their rows in a cache."""

    def __init__(self, model: AttentionTargetModel) -> None:
        self._model = model
        self._cache = KvCache(model.layout.has_rows)
        self._held: list[int] = []
        self._scored: TokenTree | None = None

    @property
    def vocab_size(self) -> int:
        """The number of tokens that `score` gives logits for."""
        return self._model.vocab_size

    @property
    def context_length(self) -> int | None:
        """The number of tokens that fit, or None if there is no limit."""
        return self._model.context_length

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last.

        What the state holds already is kept as far as the prompt begins with it. A long prompt runs
        part by part, and if that is interrupted, the state holds the parts that were finished.
        """
        prompt.check(self.vocab_size, self.context_length)
        wanted = prompt.token_ids[:-1]
        self._roll_back(num_shared(self._held, wanted))
        size = self._model.part_size(len(wanted))
        for start in range(len(self._held), len(wanted), size):
            part = torch.tensor(wanted[start : start + size])
            self._model.extend(self._cache, part, torch.arange(len(part)), skip_logits=True)
            self._held += wanted[start : start + size]

    def score(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
        """Returns the logits after each node, in one forward pass.

        Raises:
            InvalidInputError: if the tree has a token that the model does not know.
            ContextLengthError: if the tree reaches beyond the context.
            BrokenModelError: if the logits are no numbers.
        """
        self._check_tree(tree)
        logits = self._run(tree)
        if not bool(logits.amax(-1).isfinite().all()):
            raise broken_model_error(self._model.model, lambda: self._run(tree))
        self._scored = tree
        return logits

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path of the scored tree into the state."""
        assert self._scored is not None, "commit comes after score"
        self._cache.keep(len(self._held), path)
        self._held += [self._scored.tokens[node] for node in path]
        self._scored = None

    def _run(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
        self._roll_back(len(self._held))
        masks = self._model.masks(tree, len(self._held))
        return self._model.extend(self._cache, tree.token_ids, tree.depths, masks)

    def _roll_back(self, num_tokens: int) -> None:
        """Forgets the scored tree, and all but the first tokens of the text."""
        self._scored = None
        self._cache.keep(num_tokens)
        del self._held[num_tokens:]

    def _check_tree(self, tree: TokenTree) -> None:
        if max(tree.tokens) >= self.vocab_size:
            raise InvalidInputError(
                f"the tree has token id {max(tree.tokens)} and the target knows {self.vocab_size} "
                "tokens; load the drafter with the target's tokenizer"
            )
        length = len(self._held) + 1 + int(tree.depths.max())
        if self.context_length is not None and length > self.context_length:
            raise ContextLengthError(
                f"the tree reaches token {length} of the text and the context holds "
                f"{self.context_length}; clip its shape to the room that is left"
            )
