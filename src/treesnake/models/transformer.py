"""A plain decoder network for the Llama-like majority of models, made to score token trees.

Embedding; layers of attention and gated MLP with root mean square norms and rotary positions; an
output layer. `transformer_config` says which models are of this kind, `transformer_layers` reads
their weights, `transformer_torch` is the network in plain torch, for any device, and
`transformer_cpu` the same in a few compiled kernels.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from treesnake.errors import BrokenModelError, InvalidInputError, UnsupportedModelError
from treesnake.models.transformer_cache import TransformerCache
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.transformer_cpu import CPU_DTYPES, CpuEngine
from treesnake.models.transformer_torch import TORCH_DTYPES, TorchEngine
from treesnake.prompt import num_shared
from treesnake.tree import TokenTree

PREFILL_CHUNK = 512
"""Tokens of a prompt that run at once: enough arithmetic per weight, little beside the weights."""

SMALLEST_CAPACITY = 512


class Transformer:
    """Weights that many sequences share; each sequence has a `TransformerCache`.

    On a CPU a node's logits have the same bits however many nodes are scored with it and wherever
    in the tree its ancestors are. So the greedy continuation by token trees is that of plain
    decoding in every dtype, and a prompt may be cut into chunks anywhere.

    `tensors` are those of the transformers model by name, in any dtype; each is read once and
    rounded to `dtype`. On a CPU activations are float32 whatever the dtype, float32 leaves matrices
    that come in half precision as they are, which gives the same bits from half the bytes, and int8
    rounds every row of a matrix to multiples of its own scale.

    Raises:
        UnsupportedModelError: for a dtype that the device has no arithmetic for.
    """

    def __init__(
        self,
        config: TransformerConfig,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config = config
        self._engine = _load_engine(config, tensors, dtype, device)

    @property
    def vocab_size(self) -> int:
        """The number of tokens that there are logits for."""
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """The number of tokens that fit."""
        return self.config.context_length

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights in memory."""
        return self._engine.num_bytes

    def new_state(self) -> "TransformerState":
        """Returns the state of an empty text."""
        return TransformerState(self)

    def new_cache(self, capacity: int) -> TransformerCache:
        """Returns an empty cache for so many tokens and nodes."""
        return self._engine.new_cache(capacity)

    def forward(
        self,
        token_ids: Int[Tensor, " nodes"],
        ancestor_mask: Bool[Tensor, "nodes tree_nodes"],
        cache: TransformerCache,
        num_logits: int | None = None,
    ) -> Float[Tensor, "last_nodes vocab"]:
        """Runs nodes of a tree behind the committed tokens; returns float32 logits after each.

        The nodes are the last of the tree; those before them were run by earlier calls, as when a
        tree is drafted level by level. A node sees all committed tokens and what is True in its row
        of the mask, itself included, and sits as many positions behind as it sees nodes. Its keys
        and values go to the row of the cache that follows those of the nodes before it; nothing is
        committed. A chunk of a prompt is a chain, for which `num_logits=0` saves the output layer;
        else logits are those of the last `num_logits` nodes, or of all.

        Raises:
            InvalidInputError: if there are no nodes, if the mask has another shape, or if a token
                does not exist (looked at on a CPU only, where looking costs nothing).
            ContextLengthError: if the tree does not fit into the cache.
        """
        self._check(token_ids, ancestor_mask, cache)
        num_logits = len(token_ids) if num_logits is None else num_logits
        return self._engine.forward(token_ids, ancestor_mask, cache, num_logits)

    def find_broken_layer(self, token_ids: Int[Tensor, " tokens"]) -> str | None:
        """Names the first part of the network that makes numbers that are not finite, or None."""
        for num_layers in range(self.config.num_layers + 1):
            if not self._engine.hidden_after(num_layers, token_ids).isfinite().all():
                return f"layer {num_layers - 1}" if num_layers else "the embedding"
        mask = torch.ones(len(token_ids), len(token_ids), dtype=torch.bool).tril()
        logits = self._engine.forward(token_ids, mask, self.new_cache(len(token_ids)), 1)
        return None if logits.isfinite().all() else "the output layer"

    def _check(self, token_ids: Tensor, ancestor_mask: Tensor, cache: TransformerCache) -> None:
        nodes, (rows, columns) = len(token_ids), ancestor_mask.shape
        if nodes == 0 or rows != nodes or columns < nodes:
            raise InvalidInputError(
                "a forward pass needs nodes and a mask of (nodes, all nodes of the tree), got "
                f"{nodes} tokens and a mask of {rows} x {columns}"
            )
        if token_ids.device.type == "cpu":
            lowest, highest = (int(bound) for bound in token_ids.aminmax())
            if lowest < 0 or highest >= self.config.vocab_size:
                raise InvalidInputError(
                    f"token {lowest if lowest < 0 else highest} does not exist: "
                    f"the model has tokens 0 to {self.config.vocab_size - 1}"
                )
        cache.check_room(columns)


class TransformerState:
    """Holds a text's keys and values; rows of a tree's nodes follow those of the text.

    A tree grows by calls of `extend`; all of its nodes are forgotten but those of the path that is
    committed. The network is shared, the state is not.
    """

    def __init__(self, network: Transformer) -> None:
        self.network = network
        self._cache = network.new_cache(SMALLEST_CAPACITY)
        self._held: list[int] = []
        self._tokens: list[int] = []
        self._parents: list[int] = []

    @property
    def length(self) -> int:
        """The number of tokens in the text."""
        return len(self._held)

    @property
    def num_bytes(self) -> int:
        """The bytes of the text's keys and values."""
        return self._cache.num_bytes

    def prefill(self, token_ids: Sequence[int]) -> None:
        """Makes the state hold exactly these tokens; those that it holds already are kept."""
        num_kept = num_shared(self._held, token_ids)
        self._forget_tree()
        self._cache.rewind(num_kept)
        del self._held[num_kept:]
        for start in range(num_kept, len(token_ids), PREFILL_CHUNK):
            chunk = list(token_ids[start : start + PREFILL_CHUNK])
            self._reserve(len(chunk))
            mask = torch.ones(len(chunk), len(chunk), dtype=torch.bool).tril()
            self.network.forward(torch.tensor(chunk), mask, self._cache, num_logits=0)
            self._cache.commit(range(len(chunk)))
            self._held += chunk

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Appends nodes below earlier ones, or below the text (-1); returns logits after each."""
        num_before = len(self._tokens)
        # A node that stands for the end of the text makes one tree of what may have several roots.
        ends = [-1, *(parent + 1 for parent in (*self._parents, *parents))]
        tree = TokenTree(torch.zeros(len(ends), dtype=torch.long), torch.tensor(ends))
        mask = tree.ancestor_mask[1 + num_before :, 1:]
        self._reserve(mask.shape[1])
        logits = self.network.forward(torch.tensor(token_ids), mask, self._cache)
        self._tokens += token_ids
        self._parents += parents
        return logits

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path into the text and forgets the tree."""
        self._cache.commit(path)
        self._held += [self._tokens[node] for node in path]
        self._forget_tree()

    def broken_model_error(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> BrokenModelError:
        """Returns the error for a network whose logits are no numbers, naming the first layer."""
        layer = self.network.find_broken_layer(torch.tensor(token_ids))
        return BrokenModelError(
            f"the model's logits are no numbers: {layer or 'a layer that sees the whole text'} is "
            "the first part of it whose output is not finite; its weights are broken, or too large "
            "for their dtype; load them anew or choose float32"
        )

    def _forget_tree(self) -> None:
        self._tokens.clear()
        self._parents.clear()

    def _reserve(self, num_nodes: int) -> None:
        """Makes room for a tree; a cache that is full is copied into one of twice the size."""
        needed = len(self._held) + num_nodes
        if needed > self._cache.capacity:
            self._cache = self._cache.grown(max(needed, 2 * self._cache.capacity))


def _load_engine(
    config: TransformerConfig,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> CpuEngine | TorchEngine:
    known = CPU_DTYPES if device.type == "cpu" else TORCH_DTYPES
    if dtype not in known:
        names = ", ".join(str(kind).removeprefix("torch.") for kind in known)
        raise UnsupportedModelError(
            f"the native engine has weights of {names} on {device.type}, not of {dtype}"
        )
    if device.type == "cpu":
        return CpuEngine(config, tensors, dtype)
    return TorchEngine(config, tensors, dtype, device)
