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
from treesnake.models.transformer_layers import admit_tensors
from treesnake.models.transformer_pass import NewNodes
from treesnake.models.transformer_torch import TORCH_DTYPES, TorchEngine
from treesnake.models.tree_network import Part, TreeNetwork, check_tokens, own_states
from treesnake.pauses import pause
from treesnake.prompt import Prompt
from treesnake.states.held_text import HeldText
from treesnake.states.snapshots import Snapshot
from treesnake.states.tree_layout import tree_layout

SMALLEST_CAPACITY = 512


class Transformer:
    """Weights that the states of many texts share: a `TreeNetwork`.

    On a CPU a node's logits have the same bits however many nodes are scored with it, of its own
    tree or of other texts, and wherever in the tree its ancestors are. So the greedy continuation
    by token trees is that of plain decoding in every dtype, and a prompt may be cut into chunks
    anywhere.

    `tensors` are those of the transformers model by name, in any dtype. They must be what `config`
    promises, down to their shapes; `where` they come from is for messages. Each is read once and
    rounded to `dtype`. On a CPU activations are float32 whatever the dtype, float32 leaves matrices
    that come in half precision as they are, which gives the same bits from half the bytes, and int8
    and int4 round matrices in groups of 32 inputs, and what they are multiplied with to 8 bits.
    Keys and values are kept in `cache_dtype`, on a CPU only, or by default in what suits `dtype`.

    Raises:
        LoadError: if the tensors are not what the config promises.
        UnsupportedModelError: for a dtype that the device has no arithmetic for.
    """

    def __init__(
        self,
        config: TransformerConfig,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
        where: str = "the checkpoint",
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        _check_dtype(dtype, device)
        config, tensors = admit_tensors(config, tensors, where)
        self.config = config
        self._engine = _load_engine(config, tensors, dtype, device, cache_dtype)

    @property
    def vocab_size(self) -> int:
        """The number of tokens that it reads."""
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """The number of tokens that fit."""
        return self.config.context_length

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights in memory."""
        return self._engine.num_bytes

    @property
    def prefill_chunk(self) -> int:
        """How many tokens of a prompt run at once; an interrupt waits for the end of these."""
        return self._engine.prefill_chunk

    @property
    def cache_dtype(self) -> torch.dtype:
        """What keys and values are kept in."""
        return self._engine.cache_dtype

    def new_state(self) -> "TransformerState":
        """Returns the state of an empty text."""
        return TransformerState(self, HeldText(), self.new_cache(SMALLEST_CAPACITY))

    def extend_all(self, parts: Sequence[Part]) -> list[Float[Tensor, "_ vocab"]]:
        """Appends nodes to the trees of several texts in one pass; returns float32 logits.

        If it raises, or is interrupted, all texts and trees are as before.

        Raises:
            InvalidInputError: if a tree cannot grow so, a token does not exist, or two parts have
                one state.
        """
        states = own_states(parts, TransformerState, self)
        nodes = [
            state.new_nodes(part.token_ids, part.parents)
            for state, part in zip(states, parts, strict=True)
        ]
        logits = self._engine.forward_all(nodes) if nodes else []
        for state, part in zip(states, parts, strict=True):
            state.text.append(part.token_ids, part.parents)
        return logits

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
        """Runs nodes of one tree behind the committed tokens of a cache, below the book of a state.

        The nodes are the last of the tree; those before them were run by earlier calls, as when a
        tree is drafted level by level. A node sees all committed tokens and what is True in its row
        of the mask, itself included, and sits as many positions behind as it sees nodes. Its keys
        and values go to the row of the cache that follows those of the nodes before it; nothing is
        committed. Logits are those of the last `num_logits` nodes, or of all.

        Raises:
            InvalidInputError: if there are no nodes, if the mask has another shape, or if a token
                does not exist.
            ContextLengthError: if the tree does not fit into the cache.
        """
        nodes, (rows, columns) = len(token_ids), ancestor_mask.shape
        if nodes == 0 or rows != nodes or columns < nodes:
            raise InvalidInputError(
                "a forward pass needs nodes and a mask of (nodes, all nodes of the tree), got "
                f"{nodes} tokens and a mask of {rows} x {columns}"
            )
        check_tokens(token_ids.tolist(), self.vocab_size)
        cache.check_room(columns)
        num_logits = nodes if num_logits is None else num_logits
        return self._run(NewNodes(token_ids, ancestor_mask, cache, num_logits))

    def read(self, token_ids: Sequence[int], cache: TransformerCache) -> None:
        """Takes tokens into the text of a cache that has room for them."""
        self._run(NewNodes.of_text(torch.tensor(token_ids), cache, num_logits=0))
        cache.commit(range(len(token_ids)))

    def find_broken_layer(self, token_ids: Int[Tensor, " tokens"]) -> str | None:
        """Names the first part of the network that makes numbers that are not finite, or None."""
        for num_layers in range(self.config.num_layers + 1):
            if not self._engine.hidden_after(num_layers, token_ids).isfinite().all():
                return f"layer {num_layers - 1}" if num_layers else "the embedding"
        text = NewNodes.of_text(token_ids, self.new_cache(len(token_ids)), num_logits=1)
        return None if self._run(text).isfinite().all() else "the output layer"

    def _run(self, nodes: NewNodes) -> Float[Tensor, "last_nodes vocab"]:
        return self._engine.forward_all([nodes])[0]


class TransformerState:
    """Holds a text's keys and values; rows of a tree's nodes follow those of the text.

    A cache that is too small moves to one of twice the size. The network is shared, the state is
    not.
    """

    def __init__(self, network: Transformer, text: HeldText, cache: TransformerCache) -> None:
        self.network = network
        self.text = text
        self._cache = cache

    @property
    def length(self) -> int:
        """The number of tokens in the text."""
        return self.text.length

    @property
    def num_bytes(self) -> int:
        """The bytes of the text's keys and values."""
        return self._cache.num_bytes

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold all tokens of the prompt but the last, and keeps what it holds."""
        prompt.check_text_only()
        check_tokens(prompt.token_ids, self.network.vocab_size)
        self._cut(self.text.num_shared(prompt))
        end = len(prompt) - 1
        size = self.network.prefill_chunk
        for start in range(self.length, end, size):
            pause()
            chunk = prompt.token_ids[start : min(start + size, end)]
            self._reserve(len(chunk))
            self.network.read(chunk, self._cache)
            self.text.read(chunk)

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Appends nodes below earlier ones, or below the text (-1); returns logits after each."""
        return self.network.extend_all([Part(self, token_ids, parents)])[0]

    def new_nodes(self, token_ids: Sequence[int], parents: Sequence[int]) -> NewNodes:
        """Returns what the engine runs to append nodes, and makes room for them."""
        self.text.check_growth(token_ids, parents)
        check_tokens(token_ids, self.network.vocab_size)
        layout = tree_layout((*self.text.parents, *parents), 1, torch.device("cpu"))
        self._reserve(len(layout))
        mask = layout.ancestor_mask[len(self.text.tokens) :]
        return NewNodes(torch.tensor(token_ids), mask, self._cache, len(token_ids))

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path into the text and forgets the tree; the path may be empty."""
        self.text.check_path(path)
        self._cache.commit(path)
        self.text.commit(path)

    def lent_to(self, network: TreeNetwork) -> "TransformerState":
        """Returns a state of the network on this text's keys and values."""
        if (
            not isinstance(network, Transformer)
            or network.config != self.network.config
            or network.cache_dtype != self.network.cache_dtype
        ):
            raise InvalidInputError(
                "keys and values serve the network that made them, and copies of it with weights "
                "of other dtypes; the network that shall borrow them is another one"
            )
        return TransformerState(network, self.text, self._cache)

    def snapshot(self) -> Snapshot:
        """Returns copies of the text's keys and values."""
        return Snapshot(self.network, tuple(self.text.key), self._cache.copy())

    def restore(self, snapshot: Snapshot) -> None:
        """Makes the text that of a snapshot, which this or another state of the network took."""
        snapshot.check_network(self.network)
        self._cut(0)
        self._cache.restore(snapshot.tensors)
        self.text.read(snapshot.key)

    def broken_model_error(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> BrokenModelError:
        """Returns the error for a network whose logits are no numbers, naming the first layer."""
        return BrokenModelError.in_layer(self.network.find_broken_layer(torch.tensor(token_ids)))

    def _cut(self, length: int) -> None:
        self.text.cut(length)
        self._cache.rewind(length)

    def _reserve(self, num_nodes: int) -> None:
        """Makes room for a tree; a cache that is full moves to one of twice the size."""
        needed = self.length + num_nodes
        if needed > self._cache.capacity:
            self._cache.reserve(max(needed, 2 * self._cache.capacity))


def _check_dtype(dtype: torch.dtype, device: torch.device) -> None:
    known = CPU_DTYPES if device.type == "cpu" else TORCH_DTYPES
    if dtype not in known:
        names = ", ".join(str(kind).removeprefix("torch.") for kind in known)
        raise UnsupportedModelError(
            f"the native engine has weights of {names} on {device.type}, not of {dtype}"
        )


def _load_engine(
    config: TransformerConfig,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    cache_dtype: torch.dtype | None,
) -> CpuEngine | TorchEngine:
    if device.type == "cpu":
        return CpuEngine(config, tensors, dtype, cache_dtype)
    engine = TorchEngine(config, tensors, dtype, device)
    engine.check_fused()
    return engine
