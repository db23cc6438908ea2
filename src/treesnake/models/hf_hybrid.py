"""Recurrent and hybrid models of transformers with token trees: unmodified, with their own weights.

Attention layers get the mask of a tree and explicit positions, as those of any attention model do.
The mixers of recurrent layers reach our tree kernels by the dispatch of `hf_dispatch`, and what
they remember lies in memories of ours. The value that is computed is that of plain stepping: what
the model gives when it decodes token by token.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer

from treesnake.errors import BrokenModelError
from treesnake.models import hf_dispatch
from treesnake.models.hf_diagnosis import broken_model_error
from treesnake.models.hf_dispatch import PassText, mixer_pass
from treesnake.models.hf_families import check_decoder, context_length
from treesnake.models.hf_mixer_layers import mixer_cache
from treesnake.models.hf_passes import Growth, HfPasses, checked_growth, new_rows
from treesnake.models.hf_probe import check_scores_once
from treesnake.models.hf_recurrent_families import VERIFIED_RECURRENT, read_hybrid_layout
from treesnake.models.state_space_state import StateSpaceState
from treesnake.models.tree_network import Part, own_states
from treesnake.states.hybrid import HybridMemory
from treesnake.states.shared_kv import SharedKvCache

logger = logging.getLogger(__name__)

HybridState = StateSpaceState[HybridMemory]


class HfHybrid:
    """The weights of a recurrent or hybrid model, shared by the states of many texts.

    A model of a family that is not among `VERIFIED_RECURRENT` runs one small tree first, once, and
    is refused if the result is not that of its own plain stepping.

    Args:
        model: a decoder with a language-model head, in evaluation mode; it is used as it is. The
            functions that its mixers call are replaced by a dispatch, which outside of our passes
            changes nothing.

    Raises:
        UnsupportedModelError: if the model cannot run trees, with the reason.
        InvalidInputError: if the model is in training mode.
    """

    def __init__(self, model: "transformers.PreTrainedModel") -> None:
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        check_decoder(model)
        self.layout = read_hybrid_layout(self.config)
        hf_dispatch.install(model)
        _tell_of_limits(model)
        self.passes = HfPasses(model, self.layout.spans, self.layout.recurrent_kinds)
        self.vocab_size: int = self.config.vocab_size
        self.context_length = context_length(self.config) if any(self.layout.has_rows) else None
        if self.config.model_type not in VERIFIED_RECURRENT:
            check_scores_once(model, self.new_state())

    def new_state(self) -> HybridState:
        """Returns the state of an empty text."""
        return StateSpaceState(
            self, HybridMemory(self.layout.has_rows, self.layout.num_convolutions)
        )

    def extend_all(self, parts: Sequence[Part]) -> list[Float[Tensor, "_ vocab"]]:
        """Appends nodes to the trees of several texts in one pass over the weights.

        Raises:
            InvalidInputError: if a tree cannot grow so, or two parts have one state.
        """
        states: list[HybridState] = own_states(parts, StateSpaceState, self)
        growths = [
            checked_growth(state.held, part, self.vocab_size)
            for state, part in zip(states, parts, strict=True)
        ]
        memories = [state.memory for state in states]
        for memory, growth in zip(memories, growths, strict=True):
            memory.rows.keep(memory.length + growth.nodes.num_before)
        logits = self._run(memories, growths) if parts else []
        for state, part in zip(states, parts, strict=True):
            state.held.append(part.token_ids, part.parents)
        return logits

    def run_text(self, token_ids: Sequence[int], memory: HybridMemory) -> None:
        """Moves the text's part of a memory along some tokens, part by part."""
        memory.forget_tree()
        cache = self._cache(memory.rows)
        size = self.passes.part_size(memory.length + len(token_ids))
        for start in range(0, len(token_ids), size):
            part = token_ids[start : start + size]
            with mixer_pass([PassText(memory, len(part), None)]):
                self.passes.read(cache, part, memory.length)
            memory.length += len(part)

    def broken_model_error(self, token_ids: Sequence[int]) -> BrokenModelError:
        """Returns the error for logits that are no numbers, naming weights or module."""

        @torch.no_grad()
        def rerun() -> None:
            self.model(torch.tensor([token_ids], device=self.model.device), use_cache=False)

        return broken_model_error(self.model, rerun)

    def _run(
        self, memories: Sequence[HybridMemory], growths: Sequence[Growth]
    ) -> list[Float[Tensor, "_ vocab"]]:
        texts = [
            PassText(memory, growth.nodes.num_new, growth.nodes)
            for memory, growth in zip(memories, growths, strict=True)
        ]
        if len(texts) == 1:
            with mixer_pass(texts):
                return [self.passes.grow(self._cache(memories[0].rows), growths[0])]
        shared = SharedKvCache([memory.rows for memory in memories], new_rows(growths))
        with mixer_pass(texts):
            return self.passes.grow_together(self._cache(shared), growths)

    def _cache(self, rows: Cache) -> Cache:
        layers = [
            layer for layer in rows.layers if isinstance(layer, (CacheLayerMixin, DummyLayer))
        ]
        return mixer_cache(layers, self.layout.num_convolutions)


def _tell_of_limits(model: "transformers.PreTrainedModel") -> None:
    """Warns of a model that reads prompts in another way than it reads its own tokens."""
    stated: list[Any] = [getattr(module, "time_step_limit", None) for module in model.modules()]
    limits: set[tuple[float, float]] = {tuple(each) for each in stated if each is not None}
    for low, high in limits:
        if low > 0 or high < math.inf:
            logger.warning(
                "%s limits the step sizes of a prompt to %g ... %g, and not those of decoding; "
                "treesnake reads prompts as the model decodes, so that its text may differ from "
                "that of generate()",
                type(model).__name__,
                low,
                high,
            )
