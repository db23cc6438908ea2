"""The decoder on a CPU: packed weights and one compiled call a forward pass."""

from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.clock import book_wait
from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.attention import KEY_BLOCK, PATH_BLOCK, SEES_ALL, SPARE_ROWS
from treesnake.kernels.cpu.grouped import new_rounded_rows
from treesnake.kernels.cpu.linear import padded
from treesnake.kernels.cpu.norm import GATES
from treesnake.kernels.cpu.packing import ROWS_AT_ONCE, STORAGE
from treesnake.kernels.cpu.team import TEAM
from treesnake.kernels.cpu.transformer import (
    NO_ROTATION,
    PART,
    QUERY_BLOCK,
    TransformerRun,
    TransformerSettings,
    TransformerWeights,
    TransformerWorkspace,
    count_steps,
    decode,
)
from treesnake.kernels.grouped_weight import GroupedWeight
from treesnake.kernels.matrices import INT4, Matrix, in_floats
from treesnake.models.transformer_cache import KvBank, TransformerCache
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.transformer_layers import (
    EMBEDDING,
    HEAD,
    read_attention,
    read_attention_vectors,
    read_final_norm,
    read_mlp,
    read_mlp_vectors,
)
from treesnake.models.transformer_pass import NewNodes
from treesnake.models.tree_network import rows_by_part
from treesnake.models.weight_stack import (
    MATRIX_DTYPES,
    WeightStack,
    count_bytes,
    new_stack,
    write_parts,
)
from treesnake.models.weights import exact_dtype, read_blocks
from treesnake.threads import new_lock

CPU_DTYPES = MATRIX_DTYPES
"""The dtypes that weights can have. Activations are float32 with all of them."""

CACHE_DTYPES = {
    torch.float32: torch.float32,
    torch.float16: torch.float16,
    torch.bfloat16: torch.bfloat16,
    torch.int8: torch.float16,
    INT4: torch.float16,
}


class CpuEngine:
    """Packed weights and buffers. Forward passes of several threads wait for each other.

    Attributes:
        stacks: the matrices by the names that kernels know.
        prefill_chunk: tokens of a prompt to run at once: as fast as with more, and some tenths of a
            second, so that Ctrl-C need not wait.
    """

    prefill_chunk = 128

    def __init__(
        self,
        config: TransformerConfig,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        self.config = config
        self.cache_dtype = cache_dtype or CACHE_DTYPES[dtype]
        self._head_stride = padded(config.head_dim)
        self.stacks = _pack_matrices(config, tensors, exact_dtype(tensors, dtype))
        self._weights = _pack_weights(config, tensors, self.stacks)
        slope, cube = GATES[config.activation]
        self._settings = TransformerSettings(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            head_stride=self._head_stride,
            epsilon=np.float32(config.epsilon),
            embedding_scale=np.float32(config.embedding_scale),
            attention_scale=np.float32(config.attention_scale),
            gate_slope=np.float32(slope),
            gate_cube=np.float32(cube),
            norms_inputs=config.norms_inputs,
            norms_outputs=config.norms_outputs,
        )
        stride = self._head_stride
        num_attentions = len(config.attention_layers)
        self._cache_form = num_attentions, config.num_kv_heads, stride, self.cache_dtype
        self._cache_kind = np.empty((0, stride), STORAGE[self.cache_dtype])
        self._lock = new_lock()
        self._workspace = self._new_workspace(1, 1, simd.PADDING)

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights in memory."""
        return count_bytes(self.stacks.values(), self.arrays)

    @property
    def arrays(self) -> Sequence[np.ndarray]:
        """All arrays that kernels read."""
        return self._weights

    def new_cache(self, capacity: int) -> TransformerCache:
        """Returns an empty cache for so many tokens and nodes."""
        config = self.config
        bank = KvBank(
            len(config.attention_layers),
            config.num_kv_heads,
            self._head_stride,
            self.cache_dtype,
            torch.device("cpu"),
        )
        return bank.new_cache(capacity)

    def forward_all(self, parts: Sequence[NewNodes]) -> list[Float[Tensor, "_ vocab"]]:
        """Runs new nodes of several texts at once; each has the bits that it has alone.

        Returns float32 logits after the last `num_logits` nodes of each part. A part's keys and
        values go to the rows of its cache behind those of the nodes before; nothing is committed.
        """
        counts = [part.num_logits for part in parts]
        num_logits = sum(counts)
        logits = np.empty((num_logits + SPARE_ROWS, self.config.output_size), np.float32)
        asked = perf_counter()
        with self._lock:
            book_wait(asked)
            self._run(self._settings, parts, logits, num_logits)
        return rows_by_part(logits, counts)

    def hidden_after(
        self, num_layers: int, token_ids: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens hidden"]:
        """Returns what the first layers make of a text; for finding faults, not fast."""
        settings = self._settings._replace(num_layers=num_layers)
        text = NewNodes.of_text(token_ids, self.new_cache(len(token_ids)), num_logits=0)
        logits = np.empty((0, self.config.output_size), np.float32)
        asked = perf_counter()
        with self._lock:
            book_wait(asked)
            self._run(settings, [text], logits, 0)
            residual = self._workspace.residual[: len(token_ids), : self.config.hidden_size]
            return torch.tensor(residual)

    def _run(
        self,
        settings: TransformerSettings,
        parts: Sequence[NewNodes],
        logits: np.ndarray,
        num_logits: int,
    ) -> None:
        """Makes the compiled call; `parts` keep the caches alive, whose addresses it is given."""
        run = self.new_run(parts, logits, num_logits)._replace(settings=settings)
        TEAM.run(decode, count_steps(settings.num_layers), run)

    def new_run(
        self, parts: Sequence[NewNodes], logits: np.ndarray, num_logits: int
    ) -> TransformerRun:
        """Returns what a compiled call is given, which uses the workspace of this engine."""
        self._make_room(parts)
        return TransformerRun(
            settings=self._settings,
            weights=self._weights,
            parts=self._describe(parts),
            token_ids=np.concatenate([part.token_ids.numpy() for part in parts], dtype=np.int64),
            masks=np.concatenate([part.ancestor_mask.numpy().reshape(-1) for part in parts]),
            cache_kind=self._cache_kind,
            work=self._workspace,
            num_logits=num_logits,
            logits=logits,
        )

    def _describe(self, parts: Sequence[NewNodes]) -> np.ndarray:
        """Returns what the kernels are told of each part; see `PART`."""
        rows: list[tuple[int, ...]] = []
        end_node = end_mask = end_logits = 0
        for part in parts:
            keys, values = part.cache.keys, part.cache.values
            layers, heads, cache_rows, stride = keys.shape
            assert (layers, heads, stride, keys.dtype) == self._cache_form, "another network's"
            assert keys.is_contiguous()
            assert values.is_contiguous()
            nodes, tree_nodes = part.ancestor_mask.shape
            end_node += nodes
            end_mask += nodes * tree_nodes
            end_logits += part.num_logits
            cache = keys.data_ptr(), values.data_ptr(), cache_rows, part.cache.length
            rows.append((*cache, nodes, tree_nodes, end_node, end_mask, end_logits))
        return np.array(rows, PART)

    def _make_room(self, parts: Sequence[NewNodes]) -> None:
        nodes = sum(len(part.token_ids) for part in parts)
        tree_nodes = max(part.ancestor_mask.shape[1] for part in parts)
        capacity = max(part.cache.capacity for part in parts)
        work = self._workspace
        threads, _, width = work.scores.shape
        enough_nodes = nodes <= len(work.positions) and tree_nodes <= work.path_rows.shape[1]
        if not enough_nodes or capacity > width or torch.get_num_threads() > threads:
            nodes = max(nodes, len(work.positions))
            tree_nodes = max(tree_nodes, work.path_rows.shape[1])
            self._workspace = self._new_workspace(nodes, tree_nodes, max(capacity, width))

    def _new_workspace(self, nodes: int, tree_nodes: int, capacity: int) -> TransformerWorkspace:
        """Allocates zeros: the padding of rows is never written."""
        config, stride = self.config, self._head_stride
        rows = nodes + SPARE_ROWS
        threads = torch.get_num_threads()
        group = config.num_heads // config.num_kv_heads
        ways, pairs = self._weights.inverse_frequencies.shape
        gated = padded(config.mlp_size)
        widest = max(padded(config.hidden_size), config.num_heads * stride, gated)
        floats: dict[str, tuple[int, ...]] = {
            "cosines": (ways, nodes, pairs),
            "sines": (ways, nodes, pairs),
            "residual": (rows, padded(config.hidden_size)),
            "branch": (rows, padded(config.hidden_size)),
            "qkv": (rows, (config.num_heads + 2 * config.num_kv_heads) * stride),
            "queries": (config.num_kv_heads, nodes * group + SPARE_ROWS, stride),
            "attended": (rows, config.num_heads * stride),
            "gate_up": (rows, 2 * gated),
            "gated": (rows, gated),
            "scores": (threads, QUERY_BLOCK + SPARE_ROWS, padded(capacity)),
            "mixed": (threads, QUERY_BLOCK + SPARE_ROWS, stride),
            "totals": (threads, QUERY_BLOCK),
        }
        return TransformerWorkspace(
            part_of_node=np.zeros(nodes, np.int64),
            positions=np.zeros(nodes, np.int64),
            contiguous=np.zeros(nodes, np.int64),
            path_rows=np.zeros((nodes, tree_nodes), np.int64),
            rounded=new_rounded_rows(rows, widest),
            turned_keys=np.zeros((threads, stride, KEY_BLOCK), self._cache_kind.dtype),
            path_values=np.zeros((threads, PATH_BLOCK, stride), self._cache_kind.dtype),
            **{name: np.zeros(shape, np.float32) for name, shape in floats.items()},
        )


def _pack_matrices(
    config: TransformerConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, WeightStack]:
    """Reads and rounds a layer or some rows at a time, so that the model is never in memory twice.

    Embeddings are the largest matrices of small models by far, hence the rows.
    """
    layers, hidden, stride = config.num_layers, config.hidden_size, padded(config.head_dim)
    num_attentions = len(config.attention_layers)
    qkv_width = (config.num_heads + 2 * config.num_kv_heads) * stride
    stacks = {
        "qkv": new_stack(num_attentions, qkv_width, hidden, dtype),
        "attention_out": new_stack(num_attentions, hidden, config.num_heads * stride, dtype),
        "gate_up": new_stack(layers, 2 * padded(config.mlp_size), hidden, dtype),
        "down": new_stack(layers, hidden, config.mlp_size, dtype),
        "embedding": new_stack(1, config.vocab_size, hidden, dtype),
    }
    for index, number in enumerate(config.attention_layers):
        attention = read_attention(tensors, number)
        write_parts(stacks["qkv"], index, _pad_outputs(attention.qkv, config.head_dim))
        stacks["attention_out"].write(index, _pad_inputs(attention.out, config.head_dim))
    for number in range(layers):
        mlp = read_mlp(tensors, number)
        write_parts(stacks["gate_up"], number, _pad_outputs(mlp.gate_up, config.mlp_size))
        stacks["down"].write(number, mlp.down)
    write_parts(stacks["embedding"], 0, read_blocks(tensors, EMBEDDING, ROWS_AT_ONCE))
    stacks["head"] = stacks["embedding"]
    if not config.tied_embeddings:
        stacks["head"] = new_stack(1, config.output_size, hidden, dtype)
        write_parts(stacks["head"], 0, read_blocks(tensors, HEAD, ROWS_AT_ONCE))
    return stacks


def _pack_weights(
    config: TransformerConfig, tensors: Mapping[str, Tensor], stacks: Mapping[str, WeightStack]
) -> TransformerWeights:
    """Returns what kernels read: matrices that are packed already, and vectors."""
    head = config.head_dim
    rotations = [NO_ROTATION if way is None else way for way in config.rotations]
    vectors: dict[str, list[Tensor]] = {}
    for number in config.attention_layers:
        attention = read_attention_vectors(tensors, config, number)
        for name, vector in vars(attention).items():
            is_of_heads = name in ("qkv_bias", "query_norm", "key_norm")
            spacious = _pad_parts(vector, 0, head) if is_of_heads else vector
            vectors.setdefault(name, []).append(spacious.float())
    for number in range(config.num_layers):
        for name, vector in vars(read_mlp_vectors(tensors, config, number)).items():
            vectors.setdefault(name, []).append(vector.float())
    arrays = {name: stack.array for name, stack in stacks.items()}
    arrays |= {name: arrays[name][0] for name in ("embedding", "head")}
    return TransformerWeights(
        no_bias=np.empty(0, np.float32),
        final_norm=read_final_norm(tensors, config).float().numpy().copy(),
        inverse_frequencies=np.array(config.inverse_frequencies or [()], np.float32),
        rotations=np.array([rotations[number] for number in config.attention_layers]),
        windows=np.array(
            [config.windows[number] or SEES_ALL for number in config.attention_layers]
        ),
        **{name: torch.stack(parts).numpy() for name, parts in vectors.items()},
        **arrays,
    )


def _pad_outputs(parts: Sequence[Matrix], width: int) -> list[Matrix]:
    """Pads each `width` outputs of matrices with zeros to whole vectors."""
    return [
        part.pad_outputs(width, padded(width))
        if isinstance(part, GroupedWeight)
        else _pad_parts(part, 0, width)
        for part in parts
    ]


def _pad_inputs(matrix: Matrix, width: int) -> Matrix:
    """Pads each `width` inputs with zeros to whole vectors.

    That moves inputs from group to group, so a grouped weight becomes floats, and is rounded anew.
    """
    return matrix if width == padded(width) else _pad_parts(in_floats(matrix), 1, width)


def _pad_parts(x: Tensor, axis: int, width: int) -> Tensor:
    """Pads consecutive parts of one width along an axis."""
    if width == padded(width) or x.numel() == 0:
        return x
    parts = x.unflatten(axis, (-1, width))
    shape = list(parts.shape)
    shape[axis + 1] = padded(width)
    spacious = parts.new_zeros(shape)
    spacious.narrow(axis + 1, 0, width).copy_(parts)
    return spacious.flatten(axis, axis + 1)
