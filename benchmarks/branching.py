"""What does it cost to draft a tree with a Mamba, in either way to branch?

    python benchmarks/branching.py --threads 2 --output results/branching.json

For Mamba and Mamba-2 of the 130M shapes with random weights: the bytes that a tree needs with state
copies and with path sums, and the milliseconds to draft it level by level, the deepest level not
run, and to commit a path. Beside that a level of 8 nodes against one of 1, and, unless it is left
out, a chain of transformers' own network stepping with its cache. All variants of an architecture
run in turn in every round; minimum and median are reported.
"""

import functools
from argparse import ArgumentParser, Namespace
from math import prod
from typing import Any

import torch
from frame import Result, Variant, add_rounds, milliseconds, print_table, run, time_in_turn

from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space_cpu import CpuNetwork, to_cpu
from treesnake.models.state_space_state import StateSpaceState
from treesnake.prompt import Prompt
from treesnake.shape import LevelWidths
from treesnake.states.branching import BranchingKind, PathSums, StateCopies, StateShape

TREES = {"chain(5)": (1,) * 5, "3x2x2x1x1": (3, 2, 2, 1, 1), "3x4x4 (64 nodes)": (3, 4, 4)}
BRANCHINGS = {"state copies": StateCopies, "path sums": PathSums}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
PROMPT_LENGTH = 64
LEVELS = (1, 8)


def add_arguments(parser: ArgumentParser) -> None:
    add_rounds(parser, 10)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--without-transformers", action="store_true")


def measure(arguments: Namespace) -> Result:
    torch.manual_seed(0)
    result: Result = {"bytes": {}, "ms": {}}
    for name in ("mamba", "mamba2"):
        network = Mamba(MambaConfig()) if name == "mamba" else Mamba2(Mamba2Config())
        result["bytes"][name] = _bytes(network.config.state_shape)
        variants: dict[str, Variant] = {}
        for dtype in arguments.dtypes:
            variants |= _variants(to_cpu(network, DTYPES[dtype]), dtype)
        if not arguments.without_transformers:
            variants["transformers, float32, chain(5)"] = _transformers_chain(name)
        times = time_in_turn(variants, arguments.rounds)
        result["ms"][name] = {variant: milliseconds(taken) for variant, taken in times.items()}
    return result


def _bytes(shape: StateShape) -> dict[str, Any]:
    """Returns the bytes of the committed state, of a node, and of the nodes of each tree that run.

    The inputs of the convolutions, which both ways to branch keep, are counted with the nodes.
    """
    float_bytes = 4 * shape.num_layers
    history = (shape.conv_width - 1) * shape.conv_channels
    per_node = {
        name: float_bytes * (_kept_per_node(branching, shape) + shape.conv_channels)
        for name, branching in BRANCHINGS.items()
    }
    return {
        "committed": float_bytes * (history + prod(shape.state)),
        "per node": per_node,
        "trees": {
            tree: {name: sum(_levels(widths)) * size for name, size in per_node.items()}
            for tree, widths in TREES.items()
        },
    }


def _kept_per_node(branching: BranchingKind, shape: StateShape) -> int:
    """Returns the numbers that a way to branch keeps of a node in each layer."""
    if branching is StateCopies:
        return prod(shape.state)
    return prod(shape.x) + prod(shape.dt) + prod(shape.B)


def _levels(widths: tuple[int, ...]) -> list[int]:
    """Returns the number of nodes of each level that is run: all but the deepest."""
    sizes = [1]
    for width in widths[:-1]:
        sizes.append(sizes[-1] * width)
    return sizes


def _variants(network: CpuNetwork, dtype: str) -> dict[str, Variant]:
    variants: dict[str, Variant] = {}
    for name, branching in BRANCHINGS.items():
        state = network.new_state(branching)
        state.prefill(Prompt.of(range(PROMPT_LENGTH + 1)))
        for tree, widths in TREES.items():
            variants[f"{name}, {dtype}, {tree}"] = functools.partial(_draft, state, widths)
        for size in LEVELS:
            level = functools.partial(_level, state, size)
            variants[f"{name}, {dtype}, level of {size}"] = level
        whole = functools.partial(_score, state, TREES["3x4x4 (64 nodes)"])
        variants[f"{name}, {dtype}, 64 nodes in one pass"] = whole
    return variants


def _draft(state: StateSpaceState, widths: tuple[int, ...]) -> None:
    """Drafts a tree level by level and commits the anchor and a token of the first level."""
    level, num_nodes = [-1], 0
    for size in _levels(widths):
        children = size // len(level)
        parents = [node for node in level for _ in range(children)]
        state.extend([1] * size, parents)
        level = list(range(num_nodes, num_nodes + size))
        num_nodes += size
    state.commit([0, 1])


def _score(state: StateSpaceState, widths: tuple[int, ...]) -> None:
    """Runs a whole tree, leaves included, as a target does, and commits as `_draft`."""
    parents = [-1, *LevelWidths(widths).as_tree().parents]
    state.extend([1] * len(parents), parents)
    state.commit([0, 1])


def _level(state: StateSpaceState, size: int) -> None:
    state.extend([1] * size, [-1] * size)
    state.commit([])


def _transformers_chain(name: str) -> Variant:
    import transformers  # noqa: PLC0415 - only this baseline needs it

    if name == "mamba":
        config: Any = transformers.MambaConfig(num_hidden_layers=24)
        model: Any = transformers.MambaForCausalLM(config)
    else:
        config = transformers.Mamba2Config(
            vocab_size=50288,
            hidden_size=768,
            num_hidden_layers=24,
            num_heads=24,
            n_groups=1,
            tie_word_embeddings=True,
        )
        model = transformers.Mamba2ForCausalLM(config)
    model.eval()
    cache = transformers.DynamicCache(config=config)

    def chain() -> None:
        with torch.no_grad():
            for _ in TREES["chain(5)"]:
                model(torch.ones(1, 1, dtype=torch.long), cache_params=cache, use_cache=True)

    with torch.no_grad():
        model(torch.arange(PROMPT_LENGTH)[None], cache_params=cache, use_cache=True)
    return chain


def show(result: Result) -> None:
    for name, sizes in result["bytes"].items():
        print_table(
            f"{name}: megabytes (committed: {sizes['committed'] / 1e6:.2f})",
            ("tree", *BRANCHINGS),
            (
                (tree, *(f"{needs[way] / 1e6:.2f}" for way in BRANCHINGS))
                for tree, needs in sizes["trees"].items()
            ),
        )
    for name, times in result["ms"].items():
        print_table(
            f"{name}: milliseconds",
            ("variant", "minimum", "median"),
            ((each, f"{ms['min']:.1f}", f"{ms['median']:.1f}") for each, ms in times.items()),
        )


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
