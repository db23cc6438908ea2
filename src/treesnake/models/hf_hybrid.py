"""Recurrent and hybrid models of transformers with token trees: unmodified, with their own weights.

Attention layers get the mask of a tree and explicit positions, as those of any attention model do.
The mixers of recurrent layers reach our tree kernels by the dispatch of `hf_dispatch`, and what
they remember lies in memories of ours. The value that is computed is that of plain stepping: what
the model gives when it decodes token by token. Images are read as `hf_images` says.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from treesnake.errors import BrokenModelError
from treesnake.models import hf_dispatch
from treesnake.models.hf_diagnosis import broken_model_error
from treesnake.models.hf_dispatch import PassText, mixer_pass
from treesnake.models.hf_families import check_decoder, context_length
from treesnake.models.hf_images import HfImages, pieces, sees_images
from treesnake.models.hf_mixer_layers import mixer_cache
from treesnake.models.hf_passes import Growth, HfPasses, checked_growth, new_rows
from treesnake.models.hf_probe import check_inputs, check_scores_once
from treesnake.models.hf_recurrent_families import VERIFIED_RECURRENT, read_hybrid_layout
from treesnake.models.state_space_state import StateSpaceState
from treesnake.models.tree_network import Part, check_tokens, own_states
from treesnake.pauses import pause
from treesnake.prompt import Prompt, PromptInput
from treesnake.states.grown_nodes import GrownNodes
from treesnake.states.hybrid import HybridMemory
from treesnake.states.rowless_layer import RowlessLayer
from treesnake.states.shared_kv import SharedKvCache

logger = logging.getLogger(__name__)


class HfHybrid:
    """The weights of a recurrent or hybrid model, shared by the states of many texts.

    A model of a family that is not among `VERIFIED_RECURRENT` runs one small tree first, once, and
    is refused if the result is not that of its own plain stepping. One that sees images, and is not
    among `VERIFIED_VISION`, does so again with the first image that it is given.

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
        self.images = HfImages(model) if sees_images(model) else None
        if self.config.model_type not in VERIFIED_RECURRENT:
            check_scores_once(model, self.new_state())

    @property
    def reads_inputs(self) -> bool:
        """Whether prompts may bring images."""
        return self.images is not None

    def check_prompt(self, prompt: Prompt) -> None:
        """Checks that the model can read a prompt, and what comes with it.

        Raises:
            InvalidInputError: if it cannot.
            UnsupportedModelError: if it reads images otherwise than trees need, with the reason.
        """
        check_tokens(prompt.token_ids, self.vocab_size)
        check_inputs(self.model, self.images, self._score_unchecked, prompt)

    def _score_unchecked(
        self, prompt: Prompt, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "nodes vocab"]:
        memory = self.new_memory()
        self.run_prompt(prompt, memory)
        nodes = GrownNodes(tuple(parents), len(parents))
        growth = Growth(memory.length, token_ids, nodes, memory.shift)
        return self._run([memory], [growth])[0]

    def new_memory(self) -> HybridMemory:
        """Returns the memory of an empty text."""
        return HybridMemory(self.layout.has_rows, self.layout.num_convolutions)

    def new_state(self) -> "HybridState":
        """Returns the state of an empty text."""
        return HybridState(self)

    def extend_all(self, parts: Sequence[Part]) -> list[Float[Tensor, "_ vocab"]]:
        """Appends nodes to the trees of several texts in one pass over the weights.

        Raises:
            InvalidInputError: if a tree cannot grow so, or two parts have one state.
        """
        states = own_states(parts, HybridState, self)
        growths = [
            checked_growth(state.held, part, self.vocab_size, state.memory.shift)
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
            pause()
            part = token_ids[start : start + size]
            with mixer_pass([PassText(memory, len(part), None)]):
                self.passes.read(cache, part, memory.length + memory.shift)
            memory.length += len(part)

    def run_prompt(self, prompt: Prompt, memory: HybridMemory) -> None:
        """Moves the text's part of a memory along what it lacks of a prompt without its last token.

        Raises:
            InvalidInputError: if an image cannot be read.
        """
        for piece in pieces(prompt, memory.length, len(prompt)):
            token_ids = prompt.token_ids[piece.start : piece.end]
            if piece.image is None:
                self.run_text(token_ids, memory)
            else:
                self._run_image(piece.image, token_ids, memory)

    def _run_image(
        self, image: PromptInput, token_ids: Sequence[int], memory: HybridMemory
    ) -> None:
        assert self.images is not None, "prompts are checked before"
        pause()
        memory.forget_tree()
        positions = self.images.positions(image, token_ids)
        with mixer_pass([PassText(memory, len(token_ids), None)]):
            self.passes.read_input(
                self._cache(memory.rows),
                token_ids,
                positions + memory.length + memory.shift,
                self.images.options(image),
                memory.length,
                self.images.visible(token_ids),
            )
        memory.length += len(token_ids)
        memory.shift += int(positions.max()) + 1 - len(token_ids)

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
            layer for layer in rows.layers if isinstance(layer, (CacheLayerMixin, RowlessLayer))
        ]
        return mixer_cache(layers, self.layout.num_convolutions)


class HybridState(StateSpaceState[HybridMemory]):
    """The state of a text, which may have images.

    Args:
        network: the weights.
    """

    def __init__(self, network: HfHybrid) -> None:
        super().__init__(network, network.new_memory())
        self._hybrid = network

    def _check_prompt(self, prompt: Prompt) -> None:
        self._hybrid.check_prompt(prompt)

    def _run(self, prompt: Prompt, begin: int, end: int) -> None:
        inputs = tuple(each for each in prompt.inputs if each.end <= end)
        self._hybrid.run_prompt(Prompt(prompt.token_ids[: end + 1], inputs), self.memory)


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
