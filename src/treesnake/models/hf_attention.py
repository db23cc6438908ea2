"""Any attention model of transformers with token trees: unmodified, through its public interface.

Keys and values of nodes land in a cache of ours, behind those of the text, where the rows of the
committed path are kept.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from treesnake.errors import BrokenModelError
from treesnake.models.hf_diagnosis import broken_model_error
from treesnake.models.hf_families import (
    VERIFIED_FAMILIES,
    can_share_passes,
    check_supported,
    context_length,
    read_layout,
)
from treesnake.models.hf_passes import Growth, HfPasses, checked_growth, new_rows
from treesnake.models.hf_probe import check_scores_once
from treesnake.models.tree_network import Part, check_tokens, own_states
from treesnake.prompt import Prompt
from treesnake.states.held_text import HeldText
from treesnake.states.kv import KvCache
from treesnake.states.shared_kv import SharedKvCache
from treesnake.states.snapshots import Snapshot


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
        self.passes = HfPasses(model, self.layout.spans)
        self.vocab_size: int = self.config.vocab_size
        self.context_length = context_length(self.config)
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
        growths = [state.growth(part) for state, part in zip(states, parts, strict=True)]
        caches = [state.cache for state in states]
        if len(parts) > 1 and self._can_share_passes:
            shared = SharedKvCache(caches, new_rows(growths))
            logits = self.passes.grow_together(shared, growths)
        else:
            logits = [
                self.passes.grow(cache, growth)
                for cache, growth in zip(caches, growths, strict=True)
            ]
        for state, part in zip(states, parts, strict=True):
            state.text.append(part.token_ids, part.parents)
        return logits


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
        passes = self.network.passes
        size = passes.part_size(num_tokens)
        for start in range(self.text.length, num_tokens, size):
            end = min(start + size, num_tokens)
            passes.read(self.cache, prompt.token_ids[start:end], start)
            self.text.read(prompt.key[start:end])

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
        growth = checked_growth(self.text, part, self.network.vocab_size)
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
