"""The decoder in plain torch, on any device, in a few sizes that can be captured as CUDA graphs.

Texts have slots of one bank, and a pass runs the new nodes of several texts at once. Slots, nodes,
tree and rows are rounded up to powers of two. On a CUDA device each size is captured once and
replayed afterwards, without Python between the layers. So `_run` works on tensors alone, of shapes
that depend on the size only, and never waits for the device; on other devices it runs as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from time import perf_counter

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from treesnake.clock import book_wait
from treesnake.kernels.reference.norm import gate, rms_norm, rotate, rotation
from treesnake.models.cuda_graphs import GraphCache
from treesnake.models.transformer_cache import KvBank, TransformerCache
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.transformer_layers import (
    EMBEDDING,
    HEAD,
    LayerTensors,
    read_final_norm,
    read_layer,
)
from treesnake.models.transformer_pass import NewNodes
from treesnake.states.tree_layout import round_up

TORCH_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that weights, activations and cache can have."""

SMALLEST_ROWS = 256
"""Rows of the cache that attention reads at least."""


@dataclass(frozen=True)
class Size:
    """How many slots a pass has, and how many nodes, nodes of the whole tree and rows each slot."""

    slots: int
    nodes: int
    tree_nodes: int
    rows: int

    @classmethod
    def fitting(cls, parts: Sequence[NewNodes], num_slots: int) -> "Size":
        """Returns the size for some texts: one of few, less than twice the largest of each."""
        trees = [part.ancestor_mask.shape[1] for part in parts]
        needed = max(part.cache.length + tree for part, tree in zip(parts, trees, strict=True))
        return cls(
            num_slots,
            round_up(max(len(part.token_ids) for part in parts)),
            round_up(max(trees)),
            min(max(round_up(needed), SMALLEST_ROWS), parts[0].cache.capacity),
        )


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a pass is told about each of its slots.

    Nodes that only fill up see the first node of the tree and write to the spare row of their slot.

    Attributes:
        slots: their numbers in the bank.
        token_ids: the new nodes' tokens.
        mask: the nodes of the tree that each of them sees.
        cache_rows: the row that each of them writes.
        lengths: the committed tokens.
    """

    slots: Int[Tensor, " slots"]
    token_ids: Int[Tensor, "slots nodes"]
    mask: Bool[Tensor, "slots nodes tree_nodes"]
    cache_rows: Int[Tensor, "slots nodes"]
    lengths: Int[Tensor, " slots"]

    @classmethod
    def of(cls, parts: Sequence[NewNodes], slots: Sequence[int], size: Size) -> "Inputs":
        """Returns the inputs of a pass over these slots, on the host; not all need have a part."""
        spare_row = parts[0].cache.capacity
        inputs = cls(
            slots=torch.tensor(slots),
            token_ids=torch.zeros(size.slots, size.nodes, dtype=torch.int64),
            mask=torch.zeros(size.slots, size.nodes, size.tree_nodes, dtype=torch.bool),
            cache_rows=torch.full((size.slots, size.nodes), spare_row),
            lengths=torch.zeros(size.slots, dtype=torch.int64),
        )
        inputs.mask[:, :, 0] = True
        for part in parts:
            inputs._put(part, slots.index(part.cache.slot))
        return inputs

    def _put(self, part: NewNodes, index: int) -> None:
        nodes, tree_nodes = part.ancestor_mask.shape
        end = part.cache.length + tree_nodes
        self.token_ids[index, :nodes] = part.token_ids
        self.mask[index, :nodes, :tree_nodes] = part.ancestor_mask
        self.cache_rows[index, :nodes] = torch.arange(end - nodes, end)
        self.lengths[index] = part.cache.length

    def copied_to(self, device: torch.device) -> "Inputs":
        """Returns a copy on a device, at addresses of its own."""
        return Inputs(**{k: v.to(device, copy=True) for k, v in vars(self).items()})

    def overwrite(self, other: "Inputs") -> None:
        """Takes the values of other inputs of the same size, wherever these are."""
        for name, tensor in vars(self).items():
            tensor.copy_(getattr(other, name))


class TorchEngine:
    """Weights on a device, the bank of its texts, and the graphs of passes over the bank.

    Passes of several threads wait for each other.

    Args:
        graphs: where captured passes are kept; another one than for CUDA is for tests.

    Attributes:
        prefill_chunk: tokens of a prompt to run at once: enough arithmetic per weight, little
            memory beside the weights.
    """

    prefill_chunk = 512

    def __init__(
        self,
        config: TransformerConfig,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
        graphs: GraphCache[Size, Inputs] | None = None,
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
        self._bank = self._new_bank()
        self._graphs: GraphCache[Size, Inputs] = GraphCache() if graphs is None else graphs

    def _placed(self, layer: LayerTensors) -> LayerTensors:
        tensors = {field.name: getattr(layer, field.name) for field in fields(layer)}
        return LayerTensors(**{k: v.to(self.device, self.dtype) for k, v in tensors.items()})

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights in memory."""
        layers = sum(tensor.nbytes for layer in self._layers for tensor in vars(layer).values())
        head = 0 if self._head is self._embedding else self._head.nbytes
        return layers + self._embedding.nbytes + head + self._final_norm.nbytes

    @property
    def cache_dtype(self) -> torch.dtype:
        """What keys and values are kept in."""
        return self.dtype

    def new_cache(self, capacity: int) -> TransformerCache:
        """Returns an empty cache for so many tokens and nodes, at least."""
        return self._bank.new_cache(capacity)

    @torch.inference_mode()
    def forward_all(self, parts: Sequence[NewNodes]) -> list[Float[Tensor, "_ vocab"]]:
        """Runs new nodes of several texts through all layers; returns the logits of each text.

        The texts have different caches of this engine.
        """
        assert all(part.cache.bank is self._bank for part in parts)
        asked = perf_counter()
        with self._bank.lock:
            book_wait(asked)
            highest = max(part.cache.slot for part in parts)
            size = Size.fitting(parts, round_up(highest + 1))
            has_logits = any(part.num_logits for part in parts)
            if has_logits and self._graphs.serves(self.device, size.slots * size.nodes):
                return self._replay(parts, size)
            return self._run_alone(parts)

    @torch.inference_mode()
    def hidden_after(
        self, num_layers: int, token_ids: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens hidden"]:
        """Returns what the first layers make of a text; for finding faults, not fast."""
        bank = self._new_bank()
        part = NewNodes.of_text(token_ids, bank.new_cache(len(token_ids)), num_logits=0)
        size = Size.fitting([part], 1)
        inputs = Inputs.of([part], [0], size).copied_to(self.device)
        hidden = self._run(inputs, slice(0, 1), size.rows, bank, num_layers)
        return hidden[: len(token_ids)]

    def _new_bank(self) -> KvBank:
        config = self.config
        return KvBank(
            config.num_layers, config.num_kv_heads, config.head_dim, self.dtype, self.device
        )

    def _replay(self, parts: Sequence[NewNodes], size: Size) -> list[Float[Tensor, "_ vocab"]]:
        """Runs a pass of one of few sizes, over the first slots of the bank."""

        def step(inputs: Inputs) -> Float[Tensor, "slots_nodes vocab"]:
            slots = slice(0, size.slots)
            hidden = self._run(inputs, slots, size.rows, self._bank, self.config.num_layers)
            return self._logits(hidden)

        inputs = Inputs.of(parts, range(size.slots), size)
        logits = self._graphs.run(size, self._bank.generation, inputs, step, self.device)
        return [_last(logits, part, part.cache.slot * size.nodes).clone() for part in parts]

    def _run_alone(self, parts: Sequence[NewNodes]) -> list[Float[Tensor, "_ vocab"]]:
        """Runs a pass over the slots of the parts and no others."""
        slots = sorted(part.cache.slot for part in parts)
        size = Size.fitting(parts, len(slots))
        inputs = Inputs.of(parts, slots, size).copied_to(self.device)
        adjacent = slots[-1] - slots[0] < len(slots)
        read = slice(slots[0], slots[-1] + 1) if adjacent else inputs.slots
        hidden = self._run(inputs, read, size.rows, self._bank, self.config.num_layers)
        firsts = [slots.index(part.cache.slot) * size.nodes for part in parts]
        last = [_last(hidden, part, first) for part, first in zip(parts, firsts, strict=True)]
        return list(self._logits(torch.cat(last)).split([len(rows) for rows in last]))

    def _logits(self, hidden: Float[Tensor, "nodes hidden"]) -> Float[Tensor, "nodes vocab"]:
        return F.linear(rms_norm(hidden, self._final_norm, self.config.epsilon), self._head).float()

    def _run(
        self,
        inputs: Inputs,
        read: slice | Int[Tensor, " slots"],
        num_rows: int,
        bank: KvBank,
        num_layers: int,
    ) -> Float[Tensor, "slots_nodes hidden"]:
        """Runs a pass; slots are read as a part of the bank if they are adjacent, else copied."""
        positions = inputs.lengths[:, None] + inputs.mask.sum(2) - 1
        turns = rotation(positions.flatten(), self._inverse_frequencies)
        seen = {window: _seen_rows(inputs, num_rows, window) for window in set(self.config.windows)}
        hidden = F.embedding(inputs.token_ids.flatten(), self._embedding)
        for index, layer in enumerate(self._layers[:num_layers]):
            rows = Rows(bank.keys[index], bank.values[index], inputs, read, num_rows)
            mask = seen[self.config.windows[index]]
            layer_turns = turns if self.config.rotates[index] else None
            hidden = self._run_layer(layer, hidden, layer_turns, mask, rows)
        return hidden

    def _run_layer(
        self,
        layer: LayerTensors,
        hidden: Float[Tensor, "slots_nodes hidden"],
        turns: tuple[Tensor, Tensor] | None,
        mask: Bool[Tensor, "slots nodes rows"],
        rows: "Rows",
    ) -> Float[Tensor, "slots_nodes hidden"]:
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
        x: Float[Tensor, "slots_nodes hidden"],
        turns: tuple[Tensor, Tensor] | None,
        mask: Bool[Tensor, "slots nodes rows"],
        rows: "Rows",
    ) -> Float[Tensor, "slots_nodes hidden"]:
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
        self, x: Float[Tensor, "slots_nodes width"], weight: Float[Tensor, " norm_width"]
    ) -> Float[Tensor, "slots_nodes heads head_dim"]:
        if len(weight):
            x = rms_norm(x.unflatten(-1, (-1, len(weight))), weight, self.config.epsilon).flatten(1)
        return x.unflatten(-1, (-1, self.config.head_dim))


@dataclass(frozen=True, eq=False)
class Rows:
    """The bank in one layer: where the nodes of a pass write, and what they read.

    Attributes:
        keys: those of all slots.
        values: those of all slots.
        inputs: what the pass is told.
        read: the slots of the pass, for reading.
        num_read: how many rows of each.
    """

    keys: Float[Tensor, "all_slots kv_heads capacity head_dim"]
    values: Float[Tensor, "all_slots kv_heads capacity head_dim"]
    inputs: Inputs
    read: slice | Int[Tensor, " slots"]
    num_read: int

    def write(
        self,
        keys: Float[Tensor, "slots_nodes kv_heads head_dim"],
        values: Float[Tensor, "slots_nodes kv_heads head_dim"],
    ) -> None:
        """Writes the rows of the nodes."""
        slots, written = self.inputs.slots[:, None], self.inputs.cache_rows
        self.keys[slots, :, written] = keys.unflatten(0, written.shape)
        self.values[slots, :, written] = values.unflatten(0, written.shape)

    def attend(
        self,
        queries: Float[Tensor, "slots_nodes heads head_dim"],
        mask: Bool[Tensor, "slots nodes rows"],
        scale: float,
    ) -> Float[Tensor, "slots_nodes heads head_dim"]:
        """Attends to what each node sees; heads that share keys are rows of one product."""
        kv_heads = self.keys.shape[1]
        group = queries.shape[1] // kv_heads
        # Axes: slots, nodes, key heads, heads of a group, head_dim.
        grouped = queries.unflatten(1, (kv_heads, group)).unflatten(0, mask.shape[:2])
        attended = F.scaled_dot_product_attention(
            grouped.permute(0, 2, 3, 1, 4).flatten(2, 3),
            self.keys[self.read, :, : self.num_read],
            self.values[self.read, :, : self.num_read],
            attn_mask=mask.repeat(1, group, 1)[:, None],
            scale=scale,
        )
        attended = attended.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4)
        return attended.flatten(0, 1).flatten(1, 2)


def _last(
    rows: Float[Tensor, "slots_nodes width"], part: NewNodes, first: int
) -> Float[Tensor, "last_nodes width"]:
    """Returns the rows of the nodes of which logits are wanted; the part's begin at `first`."""
    end = first + len(part.token_ids)
    return rows[end - part.num_logits : end]


def _mlp(
    layer: LayerTensors, x: Float[Tensor, "slots_nodes hidden"]
) -> Float[Tensor, "slots_nodes hidden"]:
    return F.linear(gate(F.linear(x, layer.gate_up)), layer.down)


def _seen_rows(
    inputs: Inputs, num_rows: int, window: int | None
) -> Bool[Tensor, "slots nodes rows"]:
    """Does what `reference.attention.seen_rows` does, for lengths that are on the device."""
    slots, nodes, tree_nodes = inputs.mask.shape
    lengths = inputs.lengths[:, None, None]
    columns = torch.arange(num_rows + tree_nodes, device=inputs.mask.device)
    seen = (columns < lengths).repeat(1, nodes, 1)
    tree_columns = lengths + torch.arange(tree_nodes, device=inputs.mask.device)
    seen.scatter_(2, tree_columns.expand(slots, nodes, -1), inputs.mask)
    if window is not None:
        positions = seen.cumsum(2)
        seen &= positions > positions[:, :, -1:] - window
    return seen[:, :, :num_rows]
