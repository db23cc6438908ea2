"""Passes of a transformers model over tokens of texts and nodes of trees.

The nodes of a tree go in as one row of tokens; a mask lets each see the text and its ancestors, and
explicit positions tell each how deep it is. Trees of several texts go in as one row each, filled up
to the longest.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from treesnake.errors import (
    InvalidInputError,
    TreesnakeError,
    UnsupportedModelError,
    reason_of,
)
from treesnake.models.hf_families import activation_width
from treesnake.models.hf_masks import PaddedTrees, Span, tree_mask
from treesnake.models.tree_network import Part, check_tokens
from treesnake.states.grown_nodes import GrownNodes
from treesnake.states.held_text import HeldText
from treesnake.states.shared_kv import NewRows

PREFILL_BYTES = 64 * 2**20
"""What a pass over a part of a long prompt may take, about, beside weights and cache."""

Masks = Tensor | dict[str, Tensor | None] | None
"""One mask for all layers, one for each kind of layers, or the model's own causal ones."""

MISFITS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model raises that is given masks, positions or caches that it does not know, or whose
config does not belong to it."""

CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")
"""How models call their cache: all from transformers 5.24 on, before that with attention and
without."""


@dataclass(frozen=True)
class Growth:
    """What a text adds to a pass.

    Attributes:
        num_held: the number of tokens in the text.
        token_ids: those of the new nodes.
        nodes: the tree with the new nodes.
        shift: what to add to a number of tokens for the position of the next; see `HfImages`.
    """

    num_held: int
    token_ids: Sequence[int]
    nodes: GrownNodes
    shift: int = 0

    def padded_token_ids(self, num_tokens: int) -> list[int]:
        """Returns the new tokens, and copies of the last for as many as are missing."""
        missing = num_tokens - self.nodes.num_new
        return [*self.token_ids, *[self.token_ids[-1]] * missing]


def checked_growth(text: HeldText, part: Part, vocab_size: int, shift: int = 0) -> Growth:
    """Returns what a part adds to a pass.

    Args:
        text: which text it continues.
        part: the new nodes.
        vocab_size: the number of tokens that exist.
        shift: of positions behind the text.

    Raises:
        InvalidInputError: if the tree cannot grow so, or a token does not exist.
    """
    text.check_growth(part.token_ids, part.parents)
    check_tokens(part.token_ids, vocab_size)
    nodes = GrownNodes((*text.parents, *part.parents), len(part.parents))
    return Growth(text.length, part.token_ids, nodes, shift)


def new_rows(growths: Sequence[Growth]) -> NewRows:
    """Returns where the rows of new nodes belong, behind those of texts and earlier nodes."""
    before = tuple(growth.num_held + growth.nodes.num_before for growth in growths)
    return NewRows(before, tuple(growth.nodes.num_new for growth in growths))


def at_home(arguments: Mapping[str, Any], model: "transformers.PreTrainedModel") -> dict[str, Any]:
    """Returns arguments for a model, tensors on its device and those of floats in its dtype."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        if isinstance(value, Tensor)
        else value
        for name, value in arguments.items()
    }


class HfPasses:
    """A model and how it wants to be called.

    Args:
        model: a decoder with a language-model head.
        spans: how far back its layers with attention look, by transformers' name of the kind.
        unmasked: the kinds of layers that read no mask.
    """

    def __init__(
        self,
        model: "transformers.PreTrainedModel",
        spans: Mapping[str, Span],
        unmasked: Sequence[str] = (),
    ) -> None:
        arguments = inspect.signature(model.forward).parameters
        self.model = model
        self._spans = spans
        self._unmasked = unmasked
        named = (name for name in CACHE_ARGUMENTS if name in arguments)
        self._cache_argument = next(named, "past_key_values")
        self._takes_positions = "position_ids" in arguments
        self._can_skip_logits = "logits_to_keep" in arguments

    def read(self, cache: Cache, token_ids: Sequence[int], position: int) -> None:
        """Runs tokens that continue the text in the cache, the first of them at a position."""
        positions = torch.arange(position, position + len(token_ids))[None]
        self.forward(cache, [token_ids], positions, skip_logits=True)

    def read_input(
        self,
        cache: Cache,
        token_ids: Sequence[int],
        positions: Int[Tensor, "*rows 1 new"],
        tensors: Mapping[str, Any],
        num_held: int,
        visible: Bool[Tensor, "new new"] | None,
    ) -> None:
        """Runs the placeholders of an input, and with them what they stand for.

        Args:
            cache: the text before it.
            token_ids: the placeholders.
            positions: where each stands.
            tensors: by the names of the model's arguments.
            num_held: the number of tokens before it.
            visible: which placeholders each sees; None where it sees those before it.

        Raises:
            InvalidInputError: if the model cannot read it.
        """
        masks: Masks = None
        if visible is not None:
            seen = visible.to(self.model.device)
            depths = torch.arange(len(token_ids), device=self.model.device)
            masks = self.masks(
                lambda span: tree_mask(seen, depths, num_held, span, self.model.dtype)
            )
        try:
            self.forward(cache, [token_ids], positions, masks, tensors, skip_logits=True)
        except UnsupportedModelError as error:
            raise InvalidInputError(
                f"an input of the prompt with {len(token_ids)} placeholders cannot be read: "
                f"{reason_of(error.__cause__ or error)}; prepare it with the processor of the "
                "model itself"
            ) from error

    def grow(self, cache: Cache, growth: Growth) -> Float[Tensor, "new vocab"]:
        """Runs the new nodes of one tree."""
        device, nodes = self.model.device, growth.nodes
        tree = nodes.layout(device)
        positions = growth.num_held + growth.shift + tree.depths[-nodes.num_new :]
        masks: Masks = None
        if not nodes.is_chain:  # for which the model has masks
            visible = tree.ancestor_mask[-nodes.num_new :]
            masks = self.masks(
                lambda span: tree_mask(
                    visible, tree.depths, growth.num_held, span, self.model.dtype
                )
            )
        return self.forward(cache, [growth.token_ids], positions[None], masks)[0]

    def grow_together(
        self, cache: Cache, growths: Sequence[Growth]
    ) -> list[Float[Tensor, "_ vocab"]]:
        """Runs the new nodes of several trees in one padded pass."""
        num_new = tuple(growth.nodes.num_new for growth in growths)
        trees = PaddedTrees.of(
            [growth.nodes.layout(torch.device("cpu")) for growth in growths],
            num_new,
            tuple(growth.num_held for growth in growths),
            self.model.device,
        )
        token_ids = [growth.padded_token_ids(max(num_new)) for growth in growths]
        masks = self.masks(lambda span: trees.mask(span, self.model.dtype))
        shifts = torch.tensor([growth.shift for growth in growths], device=self.model.device)
        logits = self.forward(cache, token_ids, trees.positions + shifts[:, None], masks)
        return [logits[text, :new] for text, new in enumerate(num_new)]

    def forward(
        self,
        cache: Cache,
        token_ids: Sequence[Sequence[int]],
        positions: Int[Tensor, "*rows texts new"],
        masks: Masks = None,
        tensors: Mapping[str, Any] | None = None,
        *,
        skip_logits: bool = False,
    ) -> Float[Tensor, "texts scored vocab"]:
        """Runs new tokens, appends their rows to a cache and returns the logits after them.

        Args:
            cache: what the tokens continue.
            token_ids: the new tokens of each text, equally many.
            positions: where in its text each stands; some models have several rows of them.
            masks: what they may see; by default each sees all before it.
            tensors: what some tokens stand for, by the names of the model's arguments.
            skip_logits: whether the logits of all tokens but the last may be left out.

        Raises:
            UnsupportedModelError: if the model fails on them.
        """
        device = self.model.device
        options = at_home(tensors or {}, self.model)
        if skip_logits and self._can_skip_logits:
            options["logits_to_keep"] = 1
        tokens = torch.tensor(token_ids, device=device)
        return self.run(cache, tokens, positions.to(device), masks, options)

    @torch.no_grad()
    def run(
        self,
        cache: Cache,
        token_ids: Int[Tensor, "texts new"],
        positions: Int[Tensor, "*rows texts new"],
        masks: Masks = None,
        options: Mapping[str, Any] | None = None,
    ) -> Float[Tensor, "texts scored vocab"]:
        """Does what `forward` does with tensors on the model's device, and further arguments."""
        own = {**(options or {}), self._cache_argument: cache}
        if self._takes_positions:
            own["position_ids"] = positions
        try:
            outputs = self.model(input_ids=token_ids, attention_mask=masks, use_cache=True, **own)
            return outputs.logits
        except (TreesnakeError, torch.OutOfMemoryError):
            raise
        except MISFITS as error:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} cannot score a token tree: {reason_of(error)}"
            ) from error

    def part_size(self, num_tokens: int) -> int:
        """Returns how many tokens of a prompt to run at once, so that memory stays flat."""
        config = self.model.config.get_text_config(decoder=True)
        width = activation_width(config, num_tokens)
        if not self._can_skip_logits:
            width += config.vocab_size
        return max(PREFILL_BYTES // (width * self.model.dtype.itemsize), 16)

    def masks(self, make: Callable[[Span], Tensor]) -> Masks:
        """Returns a mask for each kind of layers, by name, where there are several."""
        masks: dict[str, Tensor | None] = {kind: make(span) for kind, span in self._spans.items()}
        if len(masks) < 2:
            return next(iter(masks.values()), None)
        return masks | dict.fromkeys(self._unmasked)
