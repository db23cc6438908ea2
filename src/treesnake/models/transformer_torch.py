"""The decoder in plain torch, on any device, in a few sizes that can be captured as CUDA graphs.

Nodes, tree and cache are rounded up to powers of two. On a CUDA device each size is captured once
for a cache and replayed afterwards, without Python between the layers. So `_run` works on tensors
alone, of shapes that depend on the size only, and never waits for the device; on other devices it
runs as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from treesnake.kernels.reference.norm import gate, rms_norm, rotate, rotation
from treesnake.models.cuda_graphs import capture
from treesnake.models.transformer_cache import TransformerCache
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.transformer_layers import (
    EMBEDDING,
    HEAD,
    LayerTensors,
    read_final_norm,
    read_layer,
)

TORCH_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that weights, activations and cache can have."""

LARGEST_GRAPH = 64
"""Nodes; larger chunks of a prompt have enough work to hide what launching it costs."""

SMALLEST_ROWS = 256
"""Rows of the cache that attention reads at least."""


@dataclass(frozen=True)
class Size:
    """How many nodes, nodes of the whole tree and rows of the cache a forward pass is made for."""

    nodes: int
    tree_nodes: int
    rows: int

    @classmethod
    def fitting(cls, mask: Bool[Tensor, "nodes tree_nodes"], cache: TransformerCache) -> "Size":
        """Returns the size for a call: one of few, each number less than twice what is needed."""
        nodes, tree_nodes = mask.shape
        rows = max(_round_up(cache.length + tree_nodes), SMALLEST_ROWS)
        return cls(_round_up(nodes), _round_up(tree_nodes), min(rows, cache.capacity))


def _round_up(number: int) -> int:
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a forward pass reads, at addresses that stay.

    Nodes that only fill up see the anchor and write to the spare row of the cache.
    """

    token_ids: Int[Tensor, " nodes"]
    mask: Bool[Tensor, "nodes tree_nodes"]
    cache_rows: Int[Tensor, " nodes"]
    length: Int[Tensor, ""]

    @classmethod
    def of_size(cls, size: Size, device: torch.device) -> "Inputs":
        """Returns inputs to be filled."""
        return cls(
            token_ids=torch.zeros(size.nodes, dtype=torch.int64, device=device),
            mask=torch.zeros(size.nodes, size.tree_nodes, dtype=torch.bool, device=device),
            cache_rows=torch.zeros(size.nodes, dtype=torch.int64, device=device),
            length=torch.zeros((), dtype=torch.int64, device=device),
        )

    def fill(
        self,
        token_ids: Int[Tensor, " some_nodes"],
        mask: Bool[Tensor, "some_nodes some_tree_nodes"],
        cache: TransformerCache,
    ) -> None:
        """Writes the nodes of a call."""
        nodes, tree_nodes = mask.shape
        first_row = cache.length + tree_nodes - nodes
        self.token_ids[:nodes] = token_ids
        self.mask.zero_()
        self.mask[:, 0] = True
        self.mask[:nodes, :tree_nodes] = mask
        self.cache_rows.fill_(cache.capacity)
        torch.arange(first_row, first_row + nodes, out=self.cache_rows[:nodes])
        self.length.fill_(cache.length)


class TorchEngine:
    """Weights on a device, and the graphs that were captured for each cache."""

    def __init__(
        self,
        config: TransformerConfig,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self._layers = [
            self._placed(read_layer(tensors, config, layer)) for layer in range(config.num_layers)
        ]
        self._embedding = tensors[EMBEDDING].to(device, dtype)
        self._head = self._embedding
        if not config.tied_embeddings:
            self._head = tensors[HEAD].to(device, dtype)
        self._final_norm = read_final_norm(tensors).to(device, dtype)
        self._inverse_frequencies = torch.tensor(config.inverse_frequencies, device=device)
        self._graphs: WeakKeyDictionary[TransformerCache, dict[Size, _Graph]]
        self._graphs = WeakKeyDictionary()

    def _placed(self, layer: LayerTensors) -> LayerTensors:
        tensors = {field.name: getattr(layer, field.name) for field in fields(layer)}
        return LayerTensors(**{k: v.to(self.device, self.dtype) for k, v in tensors.items()})

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights in memory."""
        layers = sum(tensor.nbytes for layer in self._layers for tensor in vars(layer).values())
        head = 0 if self._head is self._embedding else self._head.nbytes
        return layers + self._embedding.nbytes + head + self._final_norm.nbytes

    def new_cache(self, capacity: int) -> TransformerCache:
        """Returns an empty cache for so many tokens and nodes."""
        config = self.config
        return TransformerCache(
            config.num_layers,
            config.num_kv_heads,
            capacity,
            config.head_dim,
            self.dtype,
            self.device,
        )

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Int[Tensor, " nodes"],
        ancestor_mask: Bool[Tensor, "nodes tree_nodes"],
        cache: TransformerCache,
        num_logits: int,
    ) -> Float[Tensor, "last_nodes vocab"]:
        """Runs the nodes through all layers; see `treesnake.models.transformer`."""
        size = Size.fitting(ancestor_mask, cache)
        nodes = len(token_ids)
        if self.device.type == "cuda" and num_logits and size.nodes <= LARGEST_GRAPH:
            graph = self._graph(size, cache)
            graph.inputs.fill(token_ids, ancestor_mask, cache)
            return graph.replay()[nodes - num_logits : nodes].clone()
        inputs = Inputs.of_size(size, self.device)
        inputs.fill(token_ids, ancestor_mask, cache)
        hidden = self._run(inputs, size.rows, cache, self.config.num_layers)
        return self._logits(hidden[nodes - num_logits : nodes])

    @torch.inference_mode()
    def hidden_after(
        self, num_layers: int, token_ids: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens hidden"]:
        """Returns what the first layers make of a text; for finding faults, not fast."""
        cache = self.new_cache(len(token_ids))
        mask = torch.ones(len(token_ids), len(token_ids), dtype=torch.bool).tril()
        size = Size.fitting(mask, cache)
        inputs = Inputs.of_size(size, self.device)
        inputs.fill(token_ids, mask, cache)
        return self._run(inputs, size.rows, cache, num_layers)[: len(token_ids)]

    def _graph(self, size: Size, cache: TransformerCache) -> "_Graph":
        graphs = self._graphs.setdefault(cache, {})
        if size not in graphs:
            graphs[size] = _Graph(self, size, cache)
        return graphs[size]

    def _logits(self, hidden: Float[Tensor, "nodes hidden"]) -> Float[Tensor, "nodes vocab"]:
        return F.linear(rms_norm(hidden, self._final_norm, self.config.epsilon), self._head).float()

    def _run(
        self, inputs: Inputs, num_rows: int, cache: TransformerCache, num_layers: int
    ) -> Float[Tensor, "nodes hidden"]:
        positions = inputs.length + inputs.mask.sum(1) - 1
        turns = rotation(positions, self._inverse_frequencies)
        seen = {window: _seen_rows(inputs, num_rows, window) for window in set(self.config.windows)}
        hidden = F.embedding(inputs.token_ids, self._embedding)
        for index, layer in enumerate(self._layers[:num_layers]):
            rows = Rows(cache.keys[index], cache.values[index], inputs.cache_rows, num_rows)
            mask = seen[self.config.windows[index]]
            layer_turns = turns if self.config.rotates[index] else None
            hidden = self._run_layer(layer, hidden, layer_turns, mask, rows)
        return hidden

    def _run_layer(
        self,
        layer: LayerTensors,
        hidden: Float[Tensor, "nodes hidden"],
        turns: tuple[Tensor, Tensor] | None,
        mask: Bool[Tensor, "nodes rows"],
        rows: "Rows",
    ) -> Float[Tensor, "nodes hidden"]:
        epsilon = self.config.epsilon
        if self.config.norms_outputs:
            attended = self._attention(layer, hidden, turns, mask, rows)
            hidden = hidden + rms_norm(attended, layer.attention_norm, epsilon)
            return hidden + rms_norm(_mlp(layer, hidden), layer.mlp_norm, epsilon)
        normed = rms_norm(hidden, layer.attention_norm, epsilon)
        hidden = hidden + self._attention(layer, normed, turns, mask, rows)
        return hidden + _mlp(layer, rms_norm(hidden, layer.mlp_norm, epsilon))

    def _attention(
        self,
        layer: LayerTensors,
        x: Float[Tensor, "nodes hidden"],
        turns: tuple[Tensor, Tensor] | None,
        mask: Bool[Tensor, "nodes rows"],
        rows: "Rows",
    ) -> Float[Tensor, "nodes hidden"]:
        config = self.config
        widths = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        qkv = F.linear(x, layer.qkv, layer.qkv_bias)
        queries, keys, values = qkv.split([heads * config.head_dim for heads in widths], dim=-1)
        queries = self._normed_heads(queries, layer.query_norm)
        keys = self._normed_heads(keys, layer.key_norm)
        if turns is not None:
            queries, keys = rotate(queries, *turns), rotate(keys, *turns)
        rows.write(keys, values.unflatten(-1, (-1, config.head_dim)))
        attended = rows.attend(queries, mask, config.attention_scale)
        return F.linear(attended.flatten(1), layer.attention_out)

    def _normed_heads(
        self, x: Float[Tensor, "nodes width"], weight: Float[Tensor, " norm_width"]
    ) -> Float[Tensor, "nodes heads head_dim"]:
        if len(weight):
            x = rms_norm(x.unflatten(-1, (-1, len(weight))), weight, self.config.epsilon).flatten(1)
        return x.unflatten(-1, (-1, self.config.head_dim))


@dataclass(frozen=True, eq=False)
class Rows:
    """The cache of one layer: where its nodes write and how far they read."""

    keys: Float[Tensor, "kv_heads capacity head_dim"]
    values: Float[Tensor, "kv_heads capacity head_dim"]
    written: Int[Tensor, " nodes"]
    num_read: int

    def write(
        self,
        keys: Float[Tensor, "nodes kv_heads head_dim"],
        values: Float[Tensor, "nodes kv_heads head_dim"],
    ) -> None:
        """Writes the rows of the nodes."""
        self.keys.index_copy_(1, self.written, keys.transpose(0, 1))
        self.values.index_copy_(1, self.written, values.transpose(0, 1))

    def attend(
        self,
        queries: Float[Tensor, "nodes heads head_dim"],
        mask: Bool[Tensor, "nodes rows"],
        scale: float,
    ) -> Float[Tensor, "nodes heads head_dim"]:
        """Attends to what each node sees; heads that share keys are rows of one product."""
        kv_heads, group = len(self.keys), queries.shape[1] // len(self.keys)
        grouped = queries.unflatten(1, (kv_heads, group)).permute(1, 2, 0, 3)
        attended = F.scaled_dot_product_attention(
            grouped.flatten(1, 2)[None],
            self.keys[None, :, : self.num_read],
            self.values[None, :, : self.num_read],
            attn_mask=mask.repeat(group, 1),
            scale=scale,
        )
        return attended[0].unflatten(1, (group, -1)).permute(2, 0, 1, 3).flatten(1, 2)


def _mlp(layer: LayerTensors, x: Float[Tensor, "nodes hidden"]) -> Float[Tensor, "nodes hidden"]:
    return F.linear(gate(F.linear(x, layer.gate_up)), layer.down)


def _seen_rows(inputs: Inputs, num_rows: int, window: int | None) -> Bool[Tensor, "nodes rows"]:
    """Does what `reference.attention.seen_rows` does, for a length that is on the device."""
    nodes, tree_nodes = inputs.mask.shape
    columns = torch.arange(num_rows + tree_nodes, device=inputs.mask.device)
    seen = (columns < inputs.length).repeat(nodes, 1)
    tree_columns = inputs.length + torch.arange(tree_nodes, device=inputs.mask.device)
    seen.scatter_(1, tree_columns.expand(nodes, -1), inputs.mask)
    if window is not None:
        positions = seen.cumsum(1)
        seen &= positions > positions[:, -1:] - window
    return seen[:, :num_rows]


class _Graph:
    """A forward pass of one size, captured for one cache, with what it reads."""

    def __init__(self, engine: TorchEngine, size: Size, cache: TransformerCache) -> None:
        self.inputs = Inputs.of_size(size, engine.device)
        self.inputs.mask[:, 0] = True
        self.inputs.cache_rows.fill_(cache.capacity)

        def run() -> Float[Tensor, "nodes vocab"]:
            hidden = engine._run(self.inputs, size.rows, cache, engine.config.num_layers)
            return engine._logits(hidden)

        self.replay = capture(run, engine.device)
