"""What does it cost to draft, and what must be held, when the text is long?

    python benchmarks/long_context_draft.py --threads 2 --output results/long_context_draft.json

Drafts a chain of 5 below texts of 1k, 4k and 16k tokens with a Mamba-2 and with a Transformer that
has as many weights in its layers and the same vocabulary, once as it is and once with a window on
the end of the text. Weights and texts are random, which changes neither times nor bytes. At each
length the drafters run in turn in every round; minimum and median are reported, and the bytes that
each holds of the text, for the Mamba with the room for the chain.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from frame import Result, add_rounds, milliseconds, print_table, run, time_in_turn
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake.chance import TorchRng
from treesnake.drafters.network import NetworkDrafter
from treesnake.drafters.window import WindowedDrafter
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space_cpu import to_cpu
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.tree_network import TreeState
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter
from treesnake.sampling import SamplingParams
from treesnake.shape import chain

SIZES = {
    "130M": Mamba2Config(),
    "20M": Mamba2Config(vocab_size=16384, hidden_size=384, num_layers=12, num_heads=12),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
CONTEXTS = (1024, 4096, 16384)
SHAPE = chain(5, sampled=False)
HEAD_DIM = 64
WINDOW = 1024


@dataclass(frozen=True, eq=False)
class Drafting:
    """A drafter's session, and the state that it drafts from."""

    session: Drafter
    state: TreeState


def add_arguments(parser: ArgumentParser) -> None:
    add_rounds(parser, 20)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["int8"])
    parser.add_argument("--contexts", nargs="+", type=int, default=list(CONTEXTS))


def measure(arguments: Namespace) -> Result:
    torch.manual_seed(0)
    result: Result = {"window": WINDOW, "weights": {}, "drafting": {}}
    for size in arguments.sizes:
        mamba, transformer = Mamba2(SIZES[size]), _equal_transformer(SIZES[size])
        result["weights"][size] = {
            "mamba2": _num_weights(mamba),
            "transformer": _num_weights(transformer),
        }
        for dtype in arguments.dtypes:
            drafters = _drafters(mamba, transformer, DTYPES[dtype])
            result["drafting"][f"{size}, {dtype}"] = {
                str(length): _measure(drafters, length, SIZES[size].vocab_size, arguments.rounds)
                for length in sorted(arguments.contexts)
            }
    return result


def _equal_transformer(config: Mamba2Config) -> LlamaForCausalLM:
    """Makes a Transformer of half as many layers, its MLPs as wide as the Mamba's weights allow."""
    hidden, num_layers = config.hidden_size, config.num_layers // 2
    # Two layers of a Mamba-2: what is projected in (gate, input, B, C, dt), and out.
    projected = 2 * config.num_channels + 2 * config.num_groups * config.state_dim
    budget = 2 * hidden * (projected + config.num_heads + config.num_channels)
    mlp_size = (budget - 4 * hidden**2) // (3 * hidden)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=hidden,
            intermediate_size=mlp_size,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden // HEAD_DIM,
            num_key_value_heads=hidden // HEAD_DIM,
            max_position_embeddings=2 * max(CONTEXTS),
            tie_word_embeddings=config.tie_embeddings,
        )
    )


def _num_weights(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _drafters(
    mamba: Mamba2, transformer: LlamaForCausalLM, dtype: torch.dtype
) -> dict[str, Drafting]:
    recurrent = to_cpu(mamba, dtype).new_state()
    config = TransformerConfig.from_hf(transformer.config)
    network = Transformer(config, transformer.state_dict(), dtype, torch.device("cpu"))
    whole, windowed = network.new_state(), network.new_state()
    return {
        "mamba2": Drafting(NetworkDrafter(recurrent), recurrent),
        "transformer": Drafting(NetworkDrafter(whole), whole),
        f"transformer, window of {WINDOW}": Drafting(
            WindowedDrafter(NetworkDrafter(windowed), WINDOW), windowed
        ),
    }


def _measure(
    drafters: Mapping[str, Drafting], length: int, vocab_size: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Returns milliseconds and bytes of each drafter; texts of growing length are prefixes."""
    text = [index * 7919 % vocab_size for index in range(length)]
    for drafting in drafters.values():
        drafting.session.prefill(Prompt.of(text))
    variants = {name: partial(_draft, each.session, text[-1]) for name, each in drafters.items()}
    rows = {}
    for name, times in time_in_turn(variants, rounds).items():
        taken = milliseconds(times)
        state_bytes = drafters[name].state.num_bytes
        rows[name] = {
            "ms": taken["min"],
            "median_ms": taken["median"],
            "state_bytes": state_bytes,
        }
    return rows


def _draft(session: Drafter, anchor: int) -> None:
    session.draft(anchor, SHAPE, SamplingParams(), TorchRng(0))


def show(result: Result) -> None:
    for title, lengths in result["drafting"].items():
        print_table(
            f"{title}: chain of {SHAPE.depth}",
            ("drafter", "context", "ms, minimum (median)", "state, MB"),
            (
                (
                    name,
                    length,
                    f"{cost['ms']:.1f} ({cost['median_ms']:.1f})",
                    f"{cost['state_bytes'] / 1e6:.2f}",
                )
                for length, drafters in lengths.items()
                for name, cost in drafters.items()
            ),
        )


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
