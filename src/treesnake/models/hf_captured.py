"""Passes of a transformers model that are captured once and replayed, on a CUDA device.

Launched one by one from Python, the kernels of a small pass take longer than they run. A graph
reads its inputs at addresses of its own, and the rows of one text: so each text has its graphs, one
for each size of a pass. Whether all of a model's passes can be captured is found out by trying.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.errors import UnsupportedModelError
from treesnake.models.cuda_graphs import GraphCache
from treesnake.models.hf_masks import PaddedTrees
from treesnake.models.hf_passes import Growth, HfPasses
from treesnake.states.captured_kv import CapturedKvCache
from treesnake.states.kv import ROWS_PER_BLOCK, KvCache
from treesnake.states.tree_layout import round_up

LEAST_USES = 4
"""Passes of a size in one text before it is captured, which takes about as long as they save."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GrowthSize:
    """How many new nodes, nodes and rows of the cache a pass has room for."""

    new: int
    nodes: int
    rows: int

    @classmethod
    def of(cls, growth: Growth) -> "GrowthSize":
        """Returns one of few sizes; rows are at most a quarter more than there are."""
        num_nodes = len(growth.nodes.parents)
        needed = growth.num_held + num_nodes
        step = max(ROWS_PER_BLOCK, round_up(needed) // 8)
        return cls(round_up(growth.nodes.num_new), round_up(num_nodes), -(-needed // step) * step)


def growth_tensors(growth: Growth, size: GrowthSize) -> dict[str, Tensor]:
    """Returns what a pass is told, on the host.

    What fills up are copies of the last node, which write behind all rows that are read.
    """
    tree, new = growth.nodes.layout(torch.device("cpu")), growth.nodes.num_new
    num_nodes = len(tree)
    sources = torch.arange(num_nodes - new, num_nodes - new + size.new).clamp(max=num_nodes - 1)
    ancestors = torch.zeros(size.new, size.nodes, dtype=torch.bool)
    ancestors[:, :num_nodes] = tree.ancestor_mask[sources]
    depths = torch.zeros(size.nodes, dtype=torch.int64)
    depths[:num_nodes] = tree.depths
    rows = torch.full((size.new,), size.rows)
    rows[:new] = growth.num_held + sources[:new]
    return {
        "token_ids": torch.tensor(growth.padded_token_ids(size.new)),
        "ancestors": ancestors,
        "depths": depths,
        "new_depths": tree.depths[sources],
        "rows": rows,
        "held": torch.tensor(growth.num_held),
        "shift": torch.tensor(growth.shift),
    }


def run_growth(
    passes: HfPasses, cache: KvCache, size: GrowthSize, told: Mapping[str, Tensor]
) -> Float[Tensor, "new vocab"]:
    """Runs a pass on tensors alone, of shapes that follow from the size."""
    held = told["held"]
    rows = torch.arange(size.rows, device=held.device)
    behind = rows - held
    nodes = behind.clamp(0, size.nodes - 1)
    in_text = behind < 0
    in_tree = told["ancestors"][:, nodes] & (behind == nodes)
    positions = held + told["new_depths"]
    trees = PaddedTrees(
        positions[None],
        torch.where(in_text, rows, held + told["depths"][nodes])[None],
        (in_text | in_tree)[None],
    )
    masks = passes.masks(lambda span: trees.mask(span, passes.model.dtype))
    captured = CapturedKvCache(cache, told["rows"], size.rows)
    token_ids, positions = told["token_ids"][None], positions[None] + told["shift"]
    return passes.run(captured, token_ids, positions, masks)[0]


class CapturedPasses:
    """The captured passes of one text.

    Args:
        passes: the model.
        cache: the rows of the text.
        graphs: where they are kept.
    """

    def __init__(self, passes: HfPasses, cache: KvCache, graphs: GraphCache[GrowthSize]) -> None:
        self._passes = passes
        self._cache = cache
        self._graphs = graphs
        self._uses: Counter[GrowthSize] = Counter()

    def serves(self, growth: Growth) -> bool:
        """Tells whether a pass is worth a graph; the first of a text, which makes rows, is not."""
        if not self._graphs.serves(self._passes.model.device, growth.nodes.num_new):
            return False
        size = GrowthSize.of(growth)
        self._uses[size] += 1
        return self._cache.is_ready and self._uses[size] > LEAST_USES

    def grow(self, growth: Growth) -> Float[Tensor, "new vocab"] | None:
        """Runs the new nodes of a tree, or returns None if the model cannot be captured."""
        passes, cache, size = self._passes, self._cache, GrowthSize.of(growth)
        cache.reserve(size.rows + 1)
        try:
            logits = self._graphs.run(
                size,
                cache.generation,
                growth_tensors(growth, size),
                lambda told: run_growth(passes, cache, size, told),
                passes.model.device,
            )
        except (UnsupportedModelError, RuntimeError) as error:
            logger.warning(
                "%s cannot be captured in CUDA graphs, so its kernels are launched one by one, "
                "which is slower: %s",
                type(passes.model).__name__,
                error,
            )
            return None
        cache.count(growth.num_held + len(growth.nodes.parents))
        return logits[: growth.nodes.num_new].clone()
