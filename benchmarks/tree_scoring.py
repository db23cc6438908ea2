"""What does it cost to score a tree on a recurrent target, in three ways to branch?

    python benchmarks/tree_scoring.py --threads 2 --output results/tree_scoring.json

*Inputs* are what treesnake keeps of nodes: the states of a tree are made again in each pass, a head
at a time (replayed paths; the closed form of STree has the same bytes). *States* keep a state for
every node, which our own engines can do, and models of transformers do not. *Unrolled* runs the
path to every leaf as a text of its own, whose state is a copy of the committed one. Each pass runs
a whole tree of so many nodes, the anchor included, and commits the path to a leaf. All variants of
a target run in turn in every round; the bytes are those beside the committed state, keys and values
of attention left out. Weights are float32 where nothing else is said.
"""

from abc import ABC, abstractmethod
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from frame import Result, Variant, add_rounds, milliseconds, print_table, run, time_in_turn
from transformers import AutoModelForCausalLM, FalconH1Config, PreTrainedConfig, Qwen3_5TextConfig

from treesnake.loading.checkpoint import HYBRID, find_checkpoint
from treesnake.loading.networks import load_network
from treesnake.loading.options import DtypeName, LoadOptions
from treesnake.models.hf_hybrid import HfHybrid, HybridState
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

OWN_TARGETS: dict[str, tuple[str, DtypeName]] = {
    "smollm2-hybrid": (HYBRID, "float32"),
    "smollm2-hybrid at its 4 bits": (HYBRID, "stored"),
    "treesnake-smol": ("src/treesnake/drafters/shipped/treesnake-smol", "float32"),
}
LARGE = "two layers of Mamba2-2.7B"
VOCAB_SIZE = 1024
HF_TARGETS: dict[str, PreTrainedConfig] = {
    "two layers like Falcon-H1-0.5B": FalconH1Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        mamba_d_ssm=1536,
        mamba_n_heads=24,
        mamba_d_head=64,
        mamba_d_state=128,
    ),
    "four layers like Qwen3.5-0.8B": Qwen3_5TextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=1024,
        intermediate_size=3584,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        linear_num_value_heads=16,
    ),
}
"""Models of transformers with random weights: attention beside a Mamba-2 in each layer, and three
layers of the gated delta rule before one of attention."""

PROMPT_LENGTH = 64


class ScoredTarget(ABC):
    """A network, and what this script must know of its memory.

    Attributes:
        forms: the ways to branch, and what makes a state that branches so.
    """

    network: Any
    forms: Mapping[str, Callable[[], Any]]

    @abstractmethod
    def node_bytes(self, form: str) -> int:
        """Returns what the recurrent layers keep of a node."""

    @abstractmethod
    def take(self, state: Any, other: Any) -> int:
        """Copies recurrent states from another text; returns their bytes."""

    @abstractmethod
    def go_back(self, state: Any) -> None:
        """Makes a text as long as before, so that all rounds are alike; that takes no time."""

    def filled(self, form: str) -> Any:
        """Returns a state behind a prompt."""
        state = self.forms[form]()
        state.prefill(Prompt.of(range(PROMPT_LENGTH + 1)))
        return state


class OwnTarget(ScoredTarget):
    """A target of our own engines."""

    def __init__(self, network: CpuHybrid | CpuNetwork) -> None:
        self.network = network
        self.forms = {
            "inputs": partial(network.new_state, ReplayedPaths),
            "states": partial(network.new_state, StateCopies),
        }

    def node_bytes(self, form: str) -> int:
        return _recurrent_part(self.filled(form)).bank.bytes_per_node

    def take(self, state: CpuHybridState | CpuState, other: CpuHybridState | CpuState) -> int:
        copied = _recurrent_part(other).copy()
        _recurrent_part(state).restore(PROMPT_LENGTH, copied)
        return sum(tensor.nbytes for tensor in copied)

    def go_back(self, state: CpuHybridState | CpuState) -> None:
        state.held.cut(PROMPT_LENGTH)
        if isinstance(state, CpuHybridState):
            state.memory.rows.rewind(PROMPT_LENGTH)


class HfTarget(ScoredTarget):
    """A target of transformers."""

    def __init__(self, config: PreTrainedConfig) -> None:
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        self.network = HfHybrid(model.eval())
        self.forms = {"inputs": self.network.new_state}

    def node_bytes(self, form: str) -> int:
        state = self.filled(form)
        state.extend([1], [-1])
        layers = state.memory.layers.values()
        with_node = sum(layer.num_bytes for layer in layers)
        state.commit(())
        return with_node - sum(layer.num_bytes for layer in layers)

    def take(self, state: HybridState, other: HybridState) -> int:
        num_bytes = 0
        for number, layer in other.memory.layers.items():
            copied = layer.copy()
            state.memory.layers[number].restore(copied)
            num_bytes += sum(tensor.nbytes for tensor in copied[1:])
        return num_bytes

    def go_back(self, state: HybridState) -> None:
        state.held.cut(PROMPT_LENGTH)
        state.memory.length = PROMPT_LENGTH
        state.memory.rows.keep(PROMPT_LENGTH)


def add_arguments(parser: ArgumentParser) -> None:
    add_rounds(parser, 10)


def measure(arguments: Namespace) -> Result:
    targets = {}
    for name, target in _targets():
        variants: dict[str, Variant] = {}
        node_bytes = {form: target.node_bytes(form) for form in target.forms}
        sizes: dict[str, dict[int, int]] = {form: {} for form in (*target.forms, "unrolled")}
        for num_nodes, widths in TREES.items():
            parents = [-1, *(LevelWidths(widths).as_tree().parents if widths else ())]
            for form in target.forms:
                state = target.filled(form)
                variants[f"{form}, {num_nodes}"] = partial(_score, target, state, parents)
                sizes[form][num_nodes] = num_nodes * node_bytes[form]
            paths = _paths(parents)
            states = [target.filled("inputs") for _ in paths]
            variants[f"unrolled, {num_nodes}"] = partial(_unroll, target, states, paths)
            copied = sum(target.take(state, states[0]) for state in states)
            unrolled = sum(map(len, paths)) * node_bytes["inputs"]
            sizes["unrolled"][num_nodes] = copied + unrolled
        times = time_in_turn(variants, arguments.rounds)
        ms: dict[str, dict[int, Any]] = {form: {} for form in sizes}
        for variant, taken in times.items():
            form, num_nodes = variant.split(", ")
            ms[form][int(num_nodes)] = milliseconds(taken)
        targets[name] = {"ms": ms, "bytes": sizes}
    return {"targets": targets}


def _targets() -> Iterator[tuple[str, ScoredTarget]]:
    for name, (model, dtype) in OWN_TARGETS.items():
        options = LoadOptions(dtype=dtype, device="cpu")
        network = load_network(find_checkpoint(model), options).network
        assert isinstance(network, CpuHybrid | CpuNetwork)
        yield name, OwnTarget(network)
    torch.manual_seed(0)
    config = Mamba2Config(vocab_size=VOCAB_SIZE, hidden_size=2560, num_heads=80, num_layers=2)
    yield LARGE, OwnTarget(to_cpu(Mamba2(config)))
    for name, hf_config in HF_TARGETS.items():
        yield name, HfTarget(hf_config)


def _recurrent_part(state: CpuHybridState | CpuState) -> SsmState:
    return state.memory if isinstance(state, CpuState) else state.memory.state


def _score(target: ScoredTarget, state: Any, parents: Sequence[int]) -> None:
    state.extend([1] * len(parents), parents)
    state.commit(_path(len(parents) - 1, parents))
    target.go_back(state)


def _unroll(target: ScoredTarget, states: Sequence[Any], paths: Sequence[Sequence[int]]) -> None:
    for state in states[1:]:
        target.take(state, states[0])
    parts = [
        Part(state, [1] * len(path), range(-1, len(path) - 1))
        for state, path in zip(states, paths, strict=True)
    ]
    target.network.extend_all(parts)
    states[0].commit(range(len(paths[0])))
    for state in states[1:]:
        state.commit(())
    target.go_back(states[0])


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
        one = found["ms"]["inputs"][1]["min"]
        print_table(
            f"{name}: ms (x one node)",
            ("nodes", *map(str, TREES)),
            (
                (form, *(f"{ms['min']:.1f} ({ms['min'] / one:.2f})" for ms in times.values()))
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
