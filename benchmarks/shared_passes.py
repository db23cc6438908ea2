"""What does a pass cost that several texts share?

    uv run python benchmarks/shared_passes.py --threads 2 --output results/shared_passes.json

For every network one node of each of 1, 2, 4 and 8 texts runs in one pass. The texts are as long as
`--length` says, in tokens, and differ. All numbers of texts run in turn in every round; medians are
reported, and their ratio to the pass of one text.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from functools import partial

import torch
from frame import Result, add_rounds, milliseconds, print_table, run, time_in_turn

from treesnake.drafters.load import load_drafter
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.networks import load_network
from treesnake.loading.options import LoadOptions
from treesnake.models.tree_network import Part, TreeNetwork
from treesnake.prompt import Prompt

NUM_TEXTS = (1, 2, 4, 8)
TARGETS = (
    ("native", "float32"),
    ("native", "float16"),
    ("native", "int8"),
    ("generic", "float32"),
)
DRAFTER = "treesnake-smol"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--length", type=int, default=128)
    add_rounds(parser, 15)


def measure(arguments: Namespace) -> Result:
    """Measures one network after the other, so that only one is in memory."""
    passes = {}
    for name, network in _networks(arguments.target):
        times = time_in_turn(_variants(network, arguments.length), arguments.rounds)
        row = {number: milliseconds(seconds) for number, seconds in times.items()}
        one = row[str(NUM_TEXTS[0])]["median"]
        passes[name] = {
            number: {**cost, "x one text": round(cost["median"] / one, 2)}
            for number, cost in row.items()
        }
    return {"length": arguments.length, "passes_ms": passes}


def show(result: Result) -> None:
    print_table(
        f"One node of each of some texts of {result['length']} tokens, ms (and x one text)",
        ["network", *(f"{number} texts" for number in NUM_TEXTS)],
        [
            [name, *(f"{cost['median']:.2f} ({cost['x one text']:.2f})" for cost in row.values())]
            for name, row in result["passes_ms"].items()
        ],
    )


def _networks(target: str) -> Iterator[tuple[str, TreeNetwork]]:
    checkpoint = find_checkpoint(target)
    for engine, dtype in TARGETS:
        loaded = load_network(checkpoint, LoadOptions(engine=engine, dtype=dtype, device="cpu"))
        yield f"{target} {engine} {dtype}", loaded.network
    for dtype in ("float32", "int8"):
        options = LoadOptions(dtype=dtype, device="cpu")
        drafter = load_drafter(DRAFTER, options, target=checkpoint)
        assert isinstance(drafter, NetworkDrafterModel)
        yield f"{DRAFTER} {dtype}", drafter.network


def _variants(network: TreeNetwork, length: int) -> dict[str, Callable[[], None]]:
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(0, 1000, (max(NUM_TEXTS), length + 1), generator=generator).tolist()
    states = [network.new_state() for _ in texts]
    for state, text in zip(states, texts, strict=True):
        state.prefill(Prompt.of(text))
    parts = [Part(state, text[-1:], [-1]) for state, text in zip(states, texts, strict=True)]
    return {str(number): partial(_pass, network, parts[:number]) for number in NUM_TEXTS}


def _pass(network: TreeNetwork, parts: list[Part]) -> None:
    network.extend_all(parts)
    for part in parts:
        part.state.commit(())


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
