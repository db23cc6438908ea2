"""A fixed tree drafted in one pass: level after level, with the choice of tokens between them.

Drafting level by level waits for the device at each level, only to send the tokens that it chose
back to it. Which node of a fixed tree follows which is known before, so that a whole tree is one
pass, and one CUDA graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.device_noise import signed, with_noise
from treesnake.kernels.tree_rows import TreeRows
from treesnake.models.state_space_inputs import Step, TreeInputs
from treesnake.models.state_space_state import GrownTree
from treesnake.shape import FixedTree
from treesnake.states.ssm import SsmBank, SsmState
from treesnake.states.tree_layout import RowsSize, round_up, tree_layout, tree_rows
from treesnake.waiting_times import Noise

FIRST, ANCHOR, CHILDREN, EXPANDED = "first", "anchor", "children", "expanded"
SEED, PLACE, TEMPERATURE = "seed", "place", "temperature"
"""Names of what a pass is told; the depth stands before those of a level."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Level:
    """What is drafted below the nodes of one depth.

    A node is expanded if it has children; expanded nodes are numbered from the anchor, which is 0.

    Attributes:
        width: the children of the node that has most.
        children: for each child its place among the best tokens: the node's number in the level
            times `width`, and its rank.
        expanded: which of the children are expanded.
        parents: the numbers of the parents of these.
    """

    width: int
    children: tuple[int, ...]
    expanded: tuple[int, ...]
    parents: tuple[int, ...]


@lru_cache(maxsize=256)
def levels_of(shape: FixedTree) -> tuple[Level, ...]:
    """Returns the levels of a tree, the anchor's children first."""
    levels: list[Level] = []
    nodes, numbers = [0], {0: 0}
    while nodes:
        families = [shape.children[node] for node in nodes]
        width = max(map(len, families))
        children = [child for family in families for child in family]
        places = [
            index * width + rank
            for index, family in enumerate(families)
            for rank in range(len(family))
        ]
        expanded = [index for index, child in enumerate(children) if shape.children[child]]
        nodes = [children[index] for index in expanded]
        parents = tuple(numbers[shape.parents[node - 1]] for node in nodes)
        numbers |= {node: len(numbers) + index for index, node in enumerate(nodes)}
        levels.append(Level(width, tuple(places), tuple(expanded), parents))
    return tuple(levels)


@dataclass(frozen=True)
class GrowthSize:
    """What the shapes of all tensors in such a pass follow from.

    Attributes:
        first: the nodes that are given, rounded up.
        num_nodes: the nodes of the tree at each further level, rounded up.
        shape: the tree below them.
        is_noisy: whether tokens are chosen by noise, too.
    """

    first: RowsSize
    num_nodes: tuple[int, ...]
    shape: FixedTree
    is_noisy: bool

    @classmethod
    def of(cls, num_first: int, shape: FixedTree, *, is_noisy: bool) -> "GrowthSize":
        """Returns the size for a number of nodes that are given."""
        first = RowsSize(1, num_first, num_first).rounded()
        counts = [len(level.expanded) for level in levels_of(shape)]
        ends = [num_first + sum(counts[: depth + 1]) for depth in range(len(counts) - 1)]
        return cls(first, tuple(map(round_up, ends)), shape, is_noisy)

    @property
    def most_rows(self) -> int:
        """The rows that a slot needs for the nodes."""
        return max(self.first.nodes, *self.num_nodes, 0)


def growth_tensors(
    token_ids: Sequence[int],
    tree: GrownTree[SsmState],
    size: GrowthSize,
    spare_row: int,
    noise: Noise | None,
) -> dict[str, Tensor]:
    """Returns what the pass is told, on the host.

    Args:
        token_ids: those of the new nodes, each of which continues the one before it.
        tree: these nodes, and no others.
        size: of the pass.
        spare_row: a row that no node has.
        noise: by which tokens are chosen, too.
    """
    first = TreeInputs.of(token_ids, [tree], size.first, spare_row)
    slot, conv_width = tree.memory.slot, tree.memory.bank.shape.conv_width
    return {
        **{f"{FIRST}.{name}": tensor for name, tensor in first.tensors.items()},
        ANCHOR: torch.tensor([len(token_ids) - 1]),
        **({} if noise is None else _noise_tensors(noise)),
        **later_tensors(size, len(token_ids), slot, spare_row, conv_width),
    }


def _noise_tensors(noise: Noise) -> dict[str, Tensor]:
    return {
        SEED: torch.tensor(signed(noise.seed)),
        PLACE: torch.tensor(noise.place),
        TEMPERATURE: torch.tensor(noise.temperature, dtype=torch.float64),
    }


@lru_cache(maxsize=256)
def later_tensors(
    size: GrowthSize, num_first: int, slot: int, spare_row: int, conv_width: int
) -> dict[str, Tensor]:
    """Returns what the pass is told of further levels, which depends on no text."""
    tensors: dict[str, Tensor] = {}
    parents = list(range(-1, num_first - 1))
    for depth, level in enumerate(levels_of(size.shape)):
        tensors[f"{depth}.{CHILDREN}"] = torch.tensor(level.children)
        if not level.expanded:
            continue
        tensors[f"{depth}.{EXPANDED}"] = torch.tensor(level.expanded)
        parents += [num_first - 1 + parent for parent in level.parents]
        num_new = len(level.expanded)
        layout = tree_layout(tuple(parents), conv_width, CPU)
        rows_size = RowsSize(1, num_new, size.num_nodes[depth])
        rows = tree_rows([layout], [num_new], [slot], rows_size, spare_row)
        tensors |= {f"{depth}.{name}": tensor for name, tensor in vars(rows).items()}
    return tensors


def run_growth(
    tensors: Mapping[str, Tensor],
    step: Step,
    bank: SsmBank,
    shape: FixedTree,
    network_ids: Int[Tensor, " columns"] | None,
) -> Int[Tensor, "both drafted"]:
    """Runs the given nodes and all levels; returns column and network's token of each drafted node.

    Args:
        tensors: what `growth_tensors` returned, on the device.
        step: runs new nodes.
        bank: the memory of the texts.
        shape: the tree.
        network_ids: the network's token for each column of logits; None if they are numbered alike.
    """
    first = TreeInputs.of_tensors(_named(tensors, FIRST))
    logits = step(first, bank)[0][tensors[ANCHOR]]
    drafted: list[Tensor] = []
    for depth, level in enumerate(levels_of(shape)):
        if SEED in tensors:
            logits = _noisy(logits, tensors, depth, network_ids)
        best = logits.topk(level.width).indices.flatten()
        columns = best[tensors[f"{depth}.{CHILDREN}"]]
        tokens = columns if network_ids is None else network_ids[columns]
        drafted.append(torch.stack([columns, tokens]))
        if level.expanded:
            told = _named(tensors, str(depth))
            chosen = tokens[told.pop(EXPANDED)][None]
            del told[CHILDREN]
            logits = step(TreeInputs(chosen, TreeRows(**told)), bank)[0]
    return torch.cat(drafted, dim=1)


def _noisy(
    logits: Float[Tensor, "nodes columns"],
    tensors: Mapping[str, Tensor],
    depth: int,
    network_ids: Int[Tensor, " columns"] | None,
) -> Float[Tensor, "nodes columns"]:
    if network_ids is None:
        network_ids = torch.arange(logits.shape[1], device=logits.device)
    return with_noise(
        logits, tensors[SEED], tensors[PLACE] + depth, network_ids, tensors[TEMPERATURE]
    )


def _named(tensors: Mapping[str, Tensor], begin: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{begin}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{begin}.")
    }
