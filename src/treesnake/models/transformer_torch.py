"""The decoder on any device, in a few sizes that can be captured as CUDA graphs.

Texts have slots of one bank, and a pass runs the new nodes of several texts at once. Slots, nodes,
tree and rows are rounded up to powers of two. On a CUDA device each size is captured once and
replayed afterwards, without Python between the layers. So `_run` works on tensors alone, of shapes
that depend on the size only, and never waits for the device; on other devices it runs as it is.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from treesnake.clock import book_wait
from treesnake.kernels.reference.norm import gate, rms_norm, rotate
from treesnake.models.cuda_graphs import GraphCache
from treesnake.models.transformer_cache import KvBank, TransformerCache
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.transformer_inputs import Inputs, Size
from treesnake.models.transformer_layers import DecoderTensors, LayerTensors
from treesnake.models.transformer_pass import NewNodes
from treesnake.states.tree_layout import round_up, tree_layout

TORCH_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that weights, activations and cache can have."""

CHECKED_TOKENS = 300
"""The text of the tree that is run in both forms: long enough for two parts of the rows."""

MOST_DIFFERENT = 0.05
"""How far apart the logits of both forms of the layers may be, in parts of the largest logit.

Rounding to 8 bits in every layer makes less of a difference, a wrong kernel more."""

logger = logging.getLogger(__name__)


class TorchEngine:
    """Weights on a device, the bank of its texts, and the graphs of passes over the bank.

    Passes of several threads wait for each other.

    Args:
        graphs: where captured passes are kept; another one than for CUDA is for tests.

    Attributes:
        prefill_chunk: tokens of a prompt to run at once: enough arithmetic per weight, little
            memory beside the weights.
    """

    prefill_chunk = 2048

    def __init__(
        self,
        config: TransformerConfig,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
        graphs: GraphCache[Size] | None = None,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self._tensors = DecoderTensors.read(tensors, config, dtype, device)
        self._bank = self._new_bank()
        self._graphs: GraphCache[Size] = GraphCache() if graphs is None else graphs
        self._fuses = device.type == "cuda" and find_spec("triton") is not None

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights in memory."""
        return self._tensors.num_bytes

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

    @torch.inference_mode()
    def check_fused(self) -> None:
        """Runs a tree in both forms of the layers, and keeps to the plain one if they differ.

        A kernel that is wrong on a device would change what the target says without a trace.
        """
        text, parents = torch.arange(CHECKED_TOKENS) % self.config.vocab_size, (-1, 0, 0, 1)
        mask = tree_layout(parents, 1, torch.device("cpu")).ancestor_mask
        bank = self._new_bank()
        cache = bank.new_cache(CHECKED_TOKENS + len(parents))
        tree = NewNodes(text[: len(parents)], mask, cache, len(parents))
        self._run_in(bank, NewNodes.of_text(text, cache, num_logits=0))
        cache.commit(range(len(text)))
        size = Size.fitting([tree], 1)
        fused = self._fused(size)
        if fused is None:
            return
        plain = self._logits(self._run_in(bank, tree))
        inputs = Inputs.of([tree], [0], size).copied_to(self.device)
        logits = fused.run_fused(self.config, self._tensors, inputs, size.rows, bank)
        difference = float((logits - plain).abs().max() / plain.abs().max())
        self._fuses = difference <= MOST_DIFFERENT
        if not self._fuses:
            logger.warning(
                "fused kernels and plain torch differ by %.3f of the largest logit on %s, more "
                "than rounding makes; plain torch is used, which is slower. Please report it",
                difference,
                self.device,
            )

    def _fused(self, size: Size) -> Any:
        """Returns the module that runs the layers in fused kernels, if it can; else None."""
        if not self._fuses:
            return None
        fused = import_module("treesnake.models.transformer_fused")
        return fused if fused.can_fuse(self.config, size.tree_nodes) else None

    def _run_in(self, bank: KvBank, part: NewNodes) -> Float[Tensor, "nodes hidden"]:
        """Runs nodes of the only text of a bank through all layers."""
        size = Size.fitting([part], 1)
        inputs = Inputs.of([part], [0], size).copied_to(self.device)
        return self._run(inputs, slice(0, 1), size.rows, bank, self.config.num_layers)

    def _new_bank(self) -> KvBank:
        config = self.config
        return KvBank(
            config.num_layers, config.num_kv_heads, config.head_dim, self.dtype, self.device
        )

    def _replay(self, parts: Sequence[NewNodes], size: Size) -> list[Float[Tensor, "_ vocab"]]:
        """Runs a pass of one of few sizes, over the first slots of the bank."""
        fused = self._fused(size)

        def step(tensors: Mapping[str, Tensor]) -> Float[Tensor, "slots_nodes vocab"]:
            inputs = Inputs(**tensors)
            if fused is not None:
                return fused.run_fused(self.config, self._tensors, inputs, size.rows, self._bank)
            slots = slice(0, size.slots)
            hidden = self._run(inputs, slots, size.rows, self._bank, self.config.num_layers)
            return self._logits(hidden)

        inputs = Inputs.of(parts, range(size.slots), size)
        logits = self._graphs.run(size, self._bank.generation, vars(inputs), step, self.device)
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
        normed = rms_norm(hidden, self._tensors.final_norm, self.config.epsilon)
        return F.linear(normed, self._tensors.head).float()

    def _run(
        self,
        inputs: Inputs,
        read: slice | Int[Tensor, " slots"],
        num_rows: int,
        bank: KvBank,
        num_layers: int,
    ) -> Float[Tensor, "slots_nodes hidden"]:
        """Runs a pass; slots are read as a part of the bank if they are adjacent, else copied."""
        turns = self._tensors.turns(inputs.positions.flatten(), self.config)
        seen = {window: _seen_rows(inputs, num_rows, window) for window in set(self.config.windows)}
        hidden = self._tensors.embed(inputs.token_ids.flatten())
        for index, layer in enumerate(self._tensors.layers[:num_layers]):
            rows = Rows(bank.keys[index], bank.values[index], inputs, read, num_rows)
            mask = seen[self.config.windows[index]]
            hidden = self._run_layer(layer, hidden, turns[index], mask, rows)
        return hidden

    def _run_layer(
        self,
        layer: LayerTensors,
        hidden: Float[Tensor, "slots_nodes hidden"],
        turns: tuple[Tensor, Tensor] | None,
        mask: Bool[Tensor, "slots nodes rows"],
        rows: "Rows",
    ) -> Float[Tensor, "slots_nodes hidden"]:
        normed = self._normed(hidden, layer.attention_norm)
        attended = self._attention(layer, normed, turns, mask, rows)
        hidden = hidden + self._normed(attended, layer.attention_out_norm)
        gated = self._mlp(layer, self._normed(hidden, layer.mlp_norm))
        return hidden + self._normed(gated, layer.mlp_out_norm)

    def _mlp(
        self, layer: LayerTensors, x: Float[Tensor, "slots_nodes hidden"]
    ) -> Float[Tensor, "slots_nodes hidden"]:
        return F.linear(gate(F.linear(x, layer.gate_up), self.config.activation), layer.down)

    def _normed(
        self, x: Float[Tensor, "slots_nodes hidden"], weight: Float[Tensor, " norm_width"]
    ) -> Float[Tensor, "slots_nodes hidden"]:
        """Norms rows; a weight of width 0 leaves them as they are."""
        return rms_norm(x, weight, self.config.epsilon) if len(weight) else x

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
