"""What should decoding take on GPUs? A prediction by counting; nothing here ran on a GPU.

    uv run python benchmarks/gpu_predictions.py --output results/gpu_predictions.json

Passes run over tensors without values, and kernels, bytes and arithmetic are counted. A kernel
takes what its bytes take at the bandwidth of the data sheet, or its arithmetic, and at least 2.5 us
in a graph, 8 us launched by Python. Shapes and the search are then replayed on made-up texts, one
for each category of Spec-Bench, whose chains of 4 emit as many tokens a step as the shipped
drafter's did (results/acceptance-cpu.json). What Python does between passes is not counted.
"""

import json
import random
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from frame import Result, print_table, run
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

from treesnake.evaluation.simulation.comparison import rate
from treesnake.evaluation.simulation.comparison import run as replay_all
from treesnake.evaluation.simulation.synthetic import synthetic_trace
from treesnake.evaluation.simulation.trace import Trace
from treesnake.models.cuda_graphs import GraphCache
from treesnake.models.hf_attention import HfAttention
from treesnake.models.hf_captured import LEAST_USES
from treesnake.models.tree_network import Part
from treesnake.prompt import Prompt
from treesnake.search.arms import PAPER_ARMS
from treesnake.search.costs import CostTable
from treesnake.search.self_tuning import SelfTuningSearch
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, LevelWidths
from treesnake.testing.gpu_passes import (
    LLAMA_3_8B,
    SMOLLM2_135M,
    decoder,
    gpu_without_values,
    grow,
    score,
    state_space_network,
)
from treesnake.testing.pass_costs import (
    GPUS,
    SECONDS_IN_A_GRAPH,
    SECONDS_LAUNCHED,
    CountedCapture,
    Gpu,
    KernelCost,
    counted_kernels,
)

RESULTS = Path(__file__).parent.parent / "results"
LENGTH = 512
NODES = (1, 8, 32, 64)
LEVEL_NODES = (1, 4, 12, 32)
NUM_LAYERS = (1, 2)
"""Layers that are counted; each further one of a network is as the second."""

PYTHIA_6_9B = GPTNeoXConfig(
    vocab_size=50432,
    hidden_size=4096,
    intermediate_size=16384,
    num_hidden_layers=32,
    num_attention_heads=32,
)
TOKENS_OF_A_TEXT = 150
MAMBAS = ("mamba", "mamba2")
MAMBA_LAYERS = 24
PAPER_TREE = LevelWidths((3, 2, 2, 1, 1), sampled=False)
DTYPE = torch.bfloat16

PUBLISHED = {
    "chain(5)": 112.69,
    "3x2x2x1x1": 127.37,
    "3x3x2x1": 124.99,
    "2x2x2x1x1x1": 124.37,
    "bandit": 138.22,
}
"""Tokens a second in Mamba Drafters: Pythia-6.9B, Mamba-130M, GSM8K, sampled."""


def measure(arguments: Namespace) -> Result:
    """Counts passes, and replays shapes on what they take."""
    parents = {nodes: (-1, *((node - 1) // 2 for node in range(1, nodes))) for nodes in NODES}
    with gpu_without_values():
        targets = {
            "llama-3-8b, fused": (_decoder(LLAMA_3_8B, parents, True), SECONDS_IN_A_GRAPH),
            "llama-3-8b, plain": (_decoder(LLAMA_3_8B, parents, False), SECONDS_IN_A_GRAPH),
            "smollm2-135m, fused": (_decoder(SMOLLM2_135M, parents, True), SECONDS_IN_A_GRAPH),
            "smollm2-135m, plain": (_decoder(SMOLLM2_135M, parents, False), SECONDS_IN_A_GRAPH),
            "pythia-6.9b, captured": (
                _generic(PYTHIA_6_9B, parents, is_captured=True),
                SECONDS_IN_A_GRAPH,
            ),
            "pythia-6.9b, plain": (
                _generic(PYTHIA_6_9B, parents, is_captured=False),
                SECONDS_LAUNCHED,
            ),
        }
        drafters = {
            f"{name}-130m": (_levels(name, fuses=True), SECONDS_IN_A_GRAPH) for name in MAMBAS
        }
        others = {
            **{f"{name}-130m, plain": _levels(name, fuses=False) for name in MAMBAS},
            **{f"{name}-130m, whole {PAPER_TREE}": _tree(name) for name in MAMBAS},
        }
    traces = _traces()
    rates = {
        gpu.name: {
            target: {
                drafter: _tokens_per_s(gpu, targets[target], drafters[drafter], traces)
                for drafter in drafters
            }
            for target in targets
            if not target.endswith("plain")
        }
        for gpu in GPUS
    }
    return {
        "prediction": "by counting; nothing ran on a GPU",
        "context": LENGTH,
        "passes": {
            **{
                name: _described(passes, least)
                for name, (passes, least) in {**targets, **drafters}.items()
            },
            **{name: _described(passes, SECONDS_IN_A_GRAPH) for name, passes in others.items()},
        },
        "tokens_per_s": rates,
        "published": PUBLISHED,
    }


Passes = dict[int, list[KernelCost]]
"""The kernels of a pass by its nodes."""


def _decoder(config: LlamaConfig, trees: dict[int, tuple[int, ...]], fuses: bool) -> Passes:
    def count(nodes: int, num_layers: int) -> list[KernelCost]:
        capture = CountedCapture()
        engine = decoder(config, DTYPE, num_layers, capture)
        engine._fuses = fuses
        score(engine, trees[nodes], LENGTH - nodes)
        return capture.kernels

    return {nodes: _whole(count, nodes, config.num_hidden_layers) for nodes in NODES}


def _generic(
    config: GPTNeoXConfig, trees: dict[int, tuple[int, ...]], *, is_captured: bool
) -> Passes:
    """Counts the kernels of a model of transformers."""

    def count(nodes: int, num_layers: int) -> list[KernelCost]:
        own = type(config).from_dict({**config.to_dict(), "num_hidden_layers": num_layers})
        with torch.device(
            "cpu"
        ):  # its own code asks for the driver elsewhere; operations are the same
            model = AutoModelForCausalLM.from_config(own, dtype=DTYPE).eval()
        capture = CountedCapture()
        place = "cpu" if is_captured else "cuda"
        state = HfAttention(model, lambda: GraphCache(capture, place)).new_state()
        state.prefill(Prompt.of([7] * (LENGTH - nodes + 1)))
        for _ in range(LEAST_USES + 1):
            state.commit(())
            with counted_kernels() as launched:
                state.extend([7] * nodes, trees[nodes])
        return capture.kernels if is_captured else launched

    return {nodes: _whole(count, nodes, config.num_hidden_layers) for nodes in NODES}


def _levels(architecture: str, *, fuses: bool) -> Passes:
    def count(nodes: int, num_layers: int) -> list[KernelCost]:
        capture = CountedCapture()
        network = state_space_network(architecture, DTYPE, num_layers, capture)
        if not fuses:
            network._fused = lambda bank: None
        state = network.new_state()
        state.prefill(Prompt.of(range(20)))
        network.extend_all([Part(state, [7] * nodes, [-1] * nodes)])
        return capture.kernels

    return {nodes: _whole(count, nodes, MAMBA_LAYERS) for nodes in LEVEL_NODES}


def _tree(architecture: str) -> Passes:
    shape = PAPER_TREE.as_tree()

    def count(nodes: int, num_layers: int) -> list[KernelCost]:
        capture = CountedCapture()
        grow(state_space_network(architecture, DTYPE, num_layers, capture), shape)
        return capture.kernels

    nodes = 1 + shape.num_drafted
    return {nodes: _whole(count, nodes, MAMBA_LAYERS)}


def _whole(count: Any, nodes: int, num_layers: int) -> list[KernelCost]:
    """Returns the kernels of all layers, from those of one layer and of two."""
    one, two = (count(nodes, layers) for layers in NUM_LAYERS)
    layer = [*two]
    for kernel in one:
        # A kernel that goes through all layers at once has more bytes in two of them.
        same = [each for each in layer if each == kernel]
        layer.remove((same or [each for each in layer if each.name == kernel.name])[0])
    return one + layer * (num_layers - 1)


def _described(passes: Passes, least: float) -> dict[str, Any]:
    return {
        str(nodes): {
            "kernels": len(kernels),
            "bytes": sum(kernel.num_bytes for kernel in kernels),
            "flops": sum(kernel.flops for kernel in kernels),
            "ms": {gpu.name: round(gpu.seconds(kernels, least) * 1e3, 3) for gpu in GPUS},
            "ms_of_bytes": {gpu.name: round(gpu.busy_seconds(kernels) * 1e3, 3) for gpu in GPUS},
        }
        for nodes, kernels in passes.items()
    }


def _traces() -> list[Trace]:
    """Makes up a text for each category, as easy to guess as it was."""
    rows = json.loads((RESULTS / "acceptance-cpu.json").read_text("utf-8"))["rows"]
    return [
        _trace(row["category"], row["measures"]["tokens_per_step"], number)
        for number, row in enumerate(row for row in rows if row["category"] != "all")
    ]


def _trace(category: str, tokens_per_step: float, seed: int) -> Trace:
    mean = _chance_of(tokens_per_step)

    def confidence(chance: random.Random) -> float:
        return chance.betavariate(2 * mean, 2 * (1 - mean))

    return synthetic_trace(TOKENS_OF_A_TEXT, confidence, seed=seed, category=category)


def _chance_of(tokens_per_step: float) -> float:
    """Returns how often a node is right where chains of 4 emit so many tokens a step."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        emitted = sum(middle**depth for depth in range(5))
        low, high = (middle, high) if emitted < tokens_per_step else (low, middle)
    return low


def _tokens_per_s(
    gpu: Gpu,
    target: tuple[Passes, float],
    drafter: tuple[Passes, float],
    traces: Sequence[Trace],
) -> dict[str, float]:
    score_s, draft_s = (
        {LENGTH: {nodes: gpu.seconds(kernels, least) for nodes, kernels in passes.items()}}
        for passes, least in (target, drafter)
    )
    costs = CostTable(score_s, draft_s)
    searches = {
        "plain": lambda: StaticSearch(OFF),
        **{str(arm): lambda arm=arm: StaticSearch(arm) for arm in PAPER_ARMS},
        "self-tuning": lambda: SelfTuningSearch(costs),
    }
    replayed = replay_all(traces, searches, costs, noise=0.02)
    return {name: round(rate(results), 1) for name, results in replayed.items()}


def show(result: Result) -> None:
    """Prints the predictions for the first GPU."""
    name = GPUS[0].name
    rows = [
        [f"{target}, {drafter}", *(f"{value:.0f}" for value in rates.values())]
        for target, drafters in result["tokens_per_s"][name].items()
        for drafter, rates in drafters.items()
    ]
    first = next(iter(next(iter(result["tokens_per_s"][name].values())).values()))
    print_table(f"Predicted tokens a second, {name}", ["pair", *first], rows)


if __name__ == "__main__":
    run(__doc__, measure, show=show)
