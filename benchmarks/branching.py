"""What does it cost to draft a tree with a Mamba, in either way to branch?

    python benchmarks/branching.py --threads 2 --output results/branching.json

For Mamba and Mamba-2 of the 130M shapes with random weights: the bytes that a tree needs with state
copies and with path sums, and the milliseconds to draft it level by level, the deepest level not
run, and to commit a path. Beside that a level of 8 nodes against one of 1, and, unless it is left
out, a chain of transformers' own network stepping with its cache. All variants of an architecture
run in turn in every round; minimum and median are reported.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from facts import facts, write_result
from rich.console import Console
from rich.table import Table

from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space_cpu import CpuNetwork, to_cpu
from treesnake.models.state_space_state import StateSpaceState
from treesnake.prompt import Prompt
from treesnake.states.branching import BranchingKind, PathSums, StateCopies, StateShape
from treesnake.tree import level_parents

TREES = {"chain(5)": (1,) * 5, "3x2x2x1x1": (3, 2, 2, 1, 1), "3x4x4 (64 nodes)": (3, 4, 4)}
BRANCHINGS = {"state copies": StateCopies, "path sums": PathSums}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
PROMPT_LENGTH = 64
LEVELS = (1, 8)


def main() -> None:
    """Measures, prints tables and writes the result if a path is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    result: dict[str, Any] = {"facts": facts(), "bytes": {}, "ms": {}}
    for name in ("mamba", "mamba2"):
        network = Mamba(MambaConfig()) if name == "mamba" else Mamba2(Mamba2Config())
        result["bytes"][name] = _bytes(network.config.state_shape)
        variants: dict[str, Callable[[], object]] = {}
        for dtype in arguments.dtypes:
            variants |= _variants(to_cpu(network, DTYPES[dtype]), dtype)
        if not arguments.without_transformers:
            variants["transformers, float32, chain(5)"] = _transformers_chain(name)
        result["ms"][name] = _measure(variants, arguments.rounds)
    result["facts"]["load_average_after"] = facts()["load_average"]
    _print(result)
    if arguments.output:
        write_result(arguments.output, result)


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


def _variants(network: CpuNetwork, dtype: str) -> dict[str, Callable[[], object]]:
    variants: dict[str, Callable[[], object]] = {}
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
    parents = level_parents(widths)
    state.extend([1] * len(parents), parents)
    state.commit([0, 1])


def _level(state: StateSpaceState, size: int) -> None:
    state.extend([1] * size, [-1] * size)
    state.commit([])


def _transformers_chain(name: str) -> Callable[[], object]:
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


def _measure(
    variants: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if number > 0:  # the first round compiles
                times[name].append((time.perf_counter() - start) * 1e3)
    return {
        name: {"min": round(min(taken), 2), "median": round(statistics.median(taken), 2)}
        for name, taken in times.items()
    }


def _print(result: dict[str, Any]) -> None:
    console = Console()
    load = result["facts"]["load_average"]
    console.print(f"{result['facts']['threads']} threads, load average {load}")
    for name, sizes in result["bytes"].items():
        table = Table(title=f"{name}: megabytes (committed: {sizes['committed'] / 1e6:.2f})")
        for column in ("tree", *BRANCHINGS):
            table.add_column(column, justify="right")
        for tree, needs in sizes["trees"].items():
            table.add_row(tree, *(f"{needs[way] / 1e6:.2f}" for way in BRANCHINGS))
        console.print(table)
    for name, times in result["ms"].items():
        table = Table(title=f"{name}: milliseconds, minimum (median)")
        for column in ("variant", "ms"):
            table.add_column(column, justify="right")
        for variant, taken in times.items():
            table.add_row(variant, f"{taken['min']:.1f} ({taken['median']:.1f})")
        console.print(table)


if __name__ == "__main__":
    main()
