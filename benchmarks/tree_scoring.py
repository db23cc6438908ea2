"""What does it cost to score a tree on a recurrent target, in three ways to branch?

    python benchmarks/tree_scoring.py --threads 2 --output results/tree_scoring.json

*Inputs* are what treesnake keeps of nodes: the states of a tree are made again in each pass, a head
at a time (replayed paths; the closed form of STree has the same bytes). *States* keep a state for
every node. *Unrolled* runs the path to every leaf as a text of its own, whose state is a copy of
the committed one. Each pass runs a whole tree of so many nodes, the anchor included, and commits
the path to a leaf. All variants of a target run in turn in every round; the bytes are those beside
the committed state, keys and values of attention left out.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from frame import Result, Variant, add_rounds, milliseconds, print_table, run, time_in_turn

from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.networks import load_network
from treesnake.loading.options import LoadOptions
from treesnake.models.hybrid_cpu import CpuHybrid, CpuHybridState
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space_cpu import CpuNetwork, CpuState, to_cpu
from treesnake.models.tree_network import Part
from treesnake.prompt import Prompt
from treesnake.shape import LevelWidths
from treesnake.states.branching import ReplayedPaths, StateCopies
from treesnake.states.ssm import SsmState

TREES: dict[int, tuple[int, ...]] = {
    1: (),
    2: (1,),
    4: (3,),
    8: (1, 2, 2),
    13: (3, 3),
    16: (3, 2, 1),
    32: (1, 2, 2, 2, 2),
    64: (3, 4, 4),
}
"""Children of each node, level by level, by the number of nodes with the anchor."""

TARGETS = ("smollm2-hybrid", "src/treesnake/drafters/shipped/treesnake-smol")
LARGE = "two layers of Mamba2-2.7B"
PROMPT_LENGTH = 64

Network = CpuHybrid | CpuNetwork
State = CpuHybridState | CpuState


def add_arguments(parser: ArgumentParser) -> None:
    add_rounds(parser, 10)
    parser.add_argument("--dtype", default="float32")


def measure(arguments: Namespace) -> Result:
    targets = {}
    for name, network in _networks(arguments.dtype):
        variants: dict[str, Variant] = {}
        sizes: dict[str, dict[int, int]] = {"inputs": {}, "states": {}, "unrolled": {}}
        for num_nodes, widths in TREES.items():
            parents = [-1, *(LevelWidths(widths).as_tree().parents if widths else ())]
            for form, branching in (("inputs", ReplayedPaths), ("states", StateCopies)):
                state = _filled(network, branching)
                variants[f"{form}, {num_nodes}"] = partial(_score, state, parents)
                sizes[form][num_nodes] = num_nodes * _memory(state).bank.bytes_per_node
            paths = _paths(parents)
            states = [_filled(network, ReplayedPaths) for _ in paths]
            variants[f"unrolled, {num_nodes}"] = partial(_unroll, network, states, paths)
            memory = _memory(states[0])
            copied = len(paths) * sum(tensor.nbytes for tensor in memory.copy())
            nodes = sum(map(len, paths)) * memory.bank.bytes_per_node
            sizes["unrolled"][num_nodes] = copied + nodes
        times = time_in_turn(variants, arguments.rounds)
        ms: dict[str, dict[int, Any]] = {form: {} for form in sizes}
        for variant, taken in times.items():
            form, num_nodes = variant.split(", ")
            ms[form][int(num_nodes)] = milliseconds(taken)
        targets[name] = {"ms": ms, "bytes": sizes}
    return {"dtype": arguments.dtype, "targets": targets}


def _networks(dtype: Any) -> Iterator[tuple[str, Network]]:
    for name in TARGETS:
        options = LoadOptions(dtype=dtype, device="cpu")
        network = load_network(find_checkpoint(name), options).network
        assert isinstance(network, Network)
        yield name.rsplit("/", 1)[-1], network
    torch.manual_seed(0)
    config = Mamba2Config(vocab_size=1024, hidden_size=2560, num_heads=80, num_layers=2)
    yield LARGE, to_cpu(Mamba2(config), getattr(torch, dtype))


def _filled(network: Network, branching: type[ReplayedPaths] | type[StateCopies]) -> State:
    state = network.new_state(branching)
    state.prefill(Prompt.of(range(PROMPT_LENGTH + 1)))
    return state


def _memory(state: State) -> SsmState:
    return state.memory if isinstance(state, CpuState) else state.memory.state


def _score(state: State, parents: Sequence[int]) -> None:
    state.extend([1] * len(parents), parents)
    state.commit(_path(len(parents) - 1, parents))
    _go_back(state)


def _unroll(network: Network, states: Sequence[State], paths: Sequence[Sequence[int]]) -> None:
    first = _memory(states[0])
    for state in states[1:]:
        _memory(state).restore(PROMPT_LENGTH, first.copy())
    parts = [
        Part(state, [1] * len(path), range(-1, len(path) - 1))
        for state, path in zip(states, paths, strict=True)
    ]
    network.extend_all(parts)
    states[0].commit(range(len(paths[0])))
    for state in states[1:]:
        state.commit(())
    _go_back(states[0])


def _go_back(state: State) -> None:
    """Makes a text as long as before, so that all rounds are alike; that takes no time."""
    state.held.cut(PROMPT_LENGTH)
    if isinstance(state, CpuHybridState):
        state.memory.rows.rewind(PROMPT_LENGTH)


def _paths(parents: Sequence[int]) -> list[list[int]]:
    leaves = [node for node in range(len(parents)) if node not in parents]
    return [_path(leaf, parents) for leaf in leaves]


def _path(node: int, parents: Sequence[int]) -> list[int]:
    path = [node]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


def show(result: Result) -> None:
    for name, found in result["targets"].items():
        print_table(
            f"{name}, {result['dtype']}: ms (x one node)",
            ("nodes", *map(str, TREES)),
            (
                (
                    form,
                    *(
                        f"{ms['min']:.1f} ({ms['min'] / found['ms']['inputs'][1]['min']:.2f})"
                        for ms in times.values()
                    ),
                )
                for form, times in found["ms"].items()
            ),
        )
        print_table(
            f"{name}: megabytes",
            ("nodes", *map(str, TREES)),
            (
                (form, *(f"{size / 1e6:.2f}" for size in sizes.values()))
                for form, sizes in found["bytes"].items()
            ),
        )


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
