"""Any attention model of transformers with token trees: unmodified, through its public interface.

Keys and values of nodes land in a cache of ours, behind those of the text, where the rows of the
committed path are kept. On a CUDA device the passes over trees of one text are captured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import transformers
from jaxtyping import Float
from torch import Tensor

from treesnake.errors import BrokenModelError
from treesnake.models.cuda_graphs import GraphCache
from treesnake.models.hf_captured import CapturedPasses, GrowthSize
from treesnake.models.hf_diagnosis import broken_model_error
from treesnake.models.hf_families import (
    ROW_COUNTING_FAMILIES,
    VERIFIED_FAMILIES,
    check_supported,
    context_length,
    read_layout,
)
from treesnake.models.hf_images import HfImages, num_whole, pieces, sees_images
from treesnake.models.hf_passes import Growth, HfPasses, checked_growth, new_rows
from treesnake.models.hf_probe import check_inputs, check_scores_once
from treesnake.models.tree_network import Part, check_tokens, own_states
from treesnake.pauses import pause
from treesnake.prompt import Prompt, PromptInput
from treesnake.states.held_text import HeldText
from treesnake.states.kv import KvCache
from treesnake.states.shared_kv import SharedKvCache
from treesnake.states.snapshots import Snapshot


class HfAttention:
    """The weights of a transformers model, shared by the states of many texts.

    A model of a family that the tests do not have runs one small tree first, once, and is refused
    if the result is not that of its own plain forward passes. One that sees images does so again
    with the first image that it is given.

    Args:
        model: a decoder with a language-model head, in evaluation mode, that attends with "sdpa" or
            "eager"; it is used as it is and left as it is.
        new_graphs: makes what keeps the captured passes of a text; another one than for CUDA is for
            tests.

    Attributes:
        captures: whether passes are captured on a CUDA device, as far as is known: a model that
            waits for the device, or lies on several, cannot be.

    Raises:
        UnsupportedModelError: if the model cannot run trees, with the reason.
        InvalidInputError: if the model is in training mode.
    """

    def __init__(
        self,
        model: "transformers.PreTrainedModel",
        new_graphs: Callable[[], GraphCache[GrowthSize]] = GraphCache,
    ) -> None:
        check_supported(model)
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self.layout = read_layout(self.config)
        self.passes = HfPasses(model, self.layout.spans)
        self.vocab_size: int = self.config.vocab_size
        self.context_length = context_length(self.config)
        self.images = HfImages(model) if sees_images(model) else None
        is_verified = self.config.model_type in VERIFIED_FAMILIES
        if self.images is not None:
            is_verified = self.images.is_verified
        # Nobody knows of other families whether they read masks and positions and nothing else.
        self._can_share_passes = is_verified and self.config.model_type not in ROW_COUNTING_FAMILIES
        devices = {parameter.device for parameter in model.parameters()}
        self.captures = self._can_share_passes and len(devices) == 1
        self._new_graphs = new_graphs
        if not is_verified:
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
        state = self.new_state()
        state.fill(prompt)
        return state.extend(token_ids, parents)

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
        growths = [state.growth(part) for state, part in zip(states, parts, strict=True)]
        caches = [state.cache for state in states]
        if len(parts) > 1 and self._can_share_passes:
            shared = SharedKvCache(caches, new_rows(growths))
            logits = self.passes.grow_together(shared, growths)
        else:
            pairs = zip(states, growths, strict=True)
            logits = [self._grow(state, growth) for state, growth in pairs]
        for state, part in zip(states, parts, strict=True):
            state.text.append(part.token_ids, part.parents)
        return logits

    def new_captured(self, cache: KvCache) -> CapturedPasses:
        """Returns the captured passes of a text, none so far."""
        return CapturedPasses(self.passes, cache, self._new_graphs())

    def _grow(self, state: "HfAttentionState", growth: Growth) -> Float[Tensor, "new vocab"]:
        """Runs the new nodes of one tree, captured where the model allows it."""
        if self.captures and state.captured.serves(growth):
            logits = state.captured.grow(growth)
            if logits is not None:
                return logits
            self.captures = False
        return self.passes.grow(state.cache, growth)


class HfAttentionState:
    """The tokens of one text and their rows in a cache, and behind them those of a growing tree.

    Attributes:
        network: the weights.
        text: the tokens held, and the tree so far.
        shift: what to add to a number of tokens for the position of the next.
        cache: their rows, and rows of nodes that an interrupted pass did not append; these are
            dropped by the next call.
        captured: passes over these rows.
    """

    def __init__(self, network: HfAttention) -> None:
        self.network = network
        self.text = HeldText()
        self.cache = KvCache(network.layout.has_rows)
        self.captured = network.new_captured(self.cache)
        self._images: list[HeldImage] = []

    @property
    def length(self) -> int:
        """The number of tokens in the text."""
        return self.text.length

    @property
    def shift(self) -> int:
        """What to add to a number of tokens for the position of the next."""
        held = (each.shift for each in reversed(self._images) if each.end <= self.length)
        return next(held, 0)

    @property
    def num_bytes(self) -> int:
        """What the text takes in memory."""
        return self.cache.num_bytes(self.text.length)

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last, and no tree.

        The part of the text that the prompt begins with is kept. A long prompt runs part by part,
        and if that is interrupted, the state holds the parts that were finished.

        An image runs whole, in a pass of its own.

        Raises:
            InvalidInputError: if the prompt brings inputs that the model cannot read.
            UnsupportedModelError: if it reads images otherwise than trees need, with the reason.
        """
        self.network.check_prompt(prompt)
        self.fill(prompt)

    def fill(self, prompt: Prompt) -> None:
        """Does what `prefill` does with a prompt that was checked."""
        self._cut(num_whole(prompt, self.text.num_shared(prompt)))
        size = self.network.passes.part_size(len(prompt) - 1)
        for piece in pieces(prompt, self.text.length, size):
            pause()
            token_ids = prompt.token_ids[piece.start : piece.end]
            if piece.image is None:
                self.network.passes.read(self.cache, token_ids, piece.start + self.shift)
            else:
                self._read_image(piece.image, token_ids)
            self.text.read(prompt.key[piece.start : piece.end])

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Appends nodes below earlier ones, or below the text (-1); returns logits after each."""
        return self.network.extend_all([Part(self, token_ids, parents)])[0]

    def growth(self, part: Part) -> Growth:
        """Checks a part, and drops the rows of nodes that an interrupted pass did not append.

        Raises:
            InvalidInputError: if the tree cannot grow so, or a token does not exist.
        """
        growth = checked_growth(self.text, part, self.network.vocab_size, self.shift)
        self.cache.keep(self.text.length + growth.nodes.num_before)
        return growth

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path into the text and forgets the tree; the path may be empty.

        Raises:
            InvalidInputError: if `path` does not go down the tree from a child of the text.
        """
        self.text.check_path(path)
        self.cache.keep(self.text.length, path)
        self.text.commit(path)

    def snapshot(self) -> Snapshot:
        """Returns copies of the text's rows, and where the positions of its images end."""
        rows = self.cache.copy(self.text.length)
        key = tuple(self.text.key)
        return HfSnapshot(self.network, key, rows, tuple(self._images))

    def restore(self, snapshot: Snapshot) -> None:
        """Makes the text that of a snapshot, which this or another state of the network took."""
        snapshot.check_network(self.network)
        assert isinstance(snapshot, HfSnapshot)
        self._cut(0)
        self._images = list(snapshot.images)
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
        self._images = [each for each in self._images if each.end <= length]

    def _read_image(self, image: PromptInput, token_ids: Sequence[int]) -> None:
        images, before = self.network.images, self.shift
        assert images is not None, "prompts are checked before"
        positions = images.positions(image, token_ids)
        self.network.passes.read_input(
            self.cache,
            token_ids,
            positions + image.start + before,
            images.options(image),
            image.start,
            images.visible(token_ids),
        )
        shift = before + int(positions.max()) + 1 - image.num_placeholders
        self._images.append(HeldImage(image.end, shift))


@dataclass(frozen=True)
class HeldImage:
    """An image in a text.

    Attributes:
        end: the number of tokens up to its last placeholder.
        shift: what to add to a number of tokens behind it for the position of the next.
    """

    end: int
    shift: int


@dataclass(frozen=True, eq=False)
class HfSnapshot(Snapshot):
    """The rows of a text, and its images."""

    images: tuple[HeldImage, ...]
