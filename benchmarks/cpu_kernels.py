"""How close are matrix products and forward passes on a CPU to what memory allows?

    python benchmarks/cpu_kernels.py --threads 2 --output results/cpu_kernels.json

Three tables: products of a few rows with weights of each dtype on one thread, beside torch's
float32 product and the time that reading the weight takes; forward passes of our own decoder with
random weights of SmolLM2-135M's shape for 1 to 64 nodes; and the seconds until the first logits in
this process. The minimum over all rounds is reported, all variants in turn in every round.

The script is not called kernels.py: transformers would take it for the package of that name.
"""

import functools
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from frame import Result, Variant, add_rounds, print_table, run, time_in_turn
from torch import Tensor

from treesnake.kernels.cpu.grouped import LARGEST_TILE, new_rounded_rows, round_row
from treesnake.kernels.cpu.jit import entry_point
from treesnake.kernels.cpu.linear import REPLACE, TILES, padded
from treesnake.kernels.cpu.products import multiply_rows
from treesnake.kernels.matrices import GROUPED_BITS, INT4, round_to_groups
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_cache import TransformerCache
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.weight_stack import WeightStack, new_stack
from treesnake.testing.gpu_passes import SMOLLM2_135M

PRODUCTS = ((960, 576), (3072, 576), (576, 1536))
NODE_COUNTS = (1, 2, 4, 8, 16, 32, 64)
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int4": INT4,
}
STREAM_BYTES = 200_000_000
"""Weights that are read in turn, so that none is in the cache from the time before."""


def add_arguments(parser: ArgumentParser) -> None:
    add_rounds(parser, 10)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))


def measure(arguments: Namespace) -> Result:
    torch.set_num_threads(1)
    bandwidth = round(_read_bandwidth(arguments.rounds), 1)
    products = _products(arguments.dtypes, arguments.rounds, bandwidth)
    torch.set_num_threads(arguments.threads)
    forward, first_logits_s = _forwards(arguments.dtypes, arguments.rounds)
    return {
        "read_gb_per_s": bandwidth,
        "products": products,
        "forward_threads": arguments.threads,
        "forward": forward,
        "first_logits_s": first_logits_s,
    }


def _minimum(variants: Mapping[str, Variant], rounds: int) -> dict[str, float]:
    """Returns the least seconds of each variant."""
    return {name: min(times) for name, times in time_in_turn(variants, rounds).items()}


def _read_bandwidth(rounds: int) -> float:
    """Returns GB/s of summing a large array."""
    array = torch.ones(STREAM_BYTES // 4)
    return array.nbytes / _minimum({"sum": array.sum}, rounds)["sum"] / 1e9


def _products(dtypes: list[str], rounds: int, bandwidth: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for outputs, inputs in PRODUCTS:
        weight = torch.randn(outputs, inputs)
        packed = {name: _copies(weight, DTYPES[name]) for name in dtypes}
        plain = [weight.clone() for _ in range(STREAM_BYTES // weight.nbytes)]
        for nodes in NODE_COUNTS:
            x = torch.randn(nodes, inputs)
            variants = {
                name: functools.partial(
                    _each, functools.partial(_product, outputs=outputs), x, copies.array
                )
                for name, copies in packed.items()
            }
            variants["torch"] = functools.partial(_each, F.linear, x, plain)
            seconds = _minimum(variants, max(2, rounds // 4))
            counts = {name: len(copies.array) for name, copies in packed.items()}
            counts["torch"] = len(plain)
            rows.append(
                {
                    "outputs": outputs,
                    "inputs": inputs,
                    "rows": nodes,
                    "ms": {name: round(s / counts[name] * 1e3, 4) for name, s in seconds.items()},
                    "floor_ms": {
                        name: round(copies.num_bytes / counts[name] / bandwidth / 1e6, 4)
                        for name, copies in packed.items()
                    },
                }
            )
    return rows


def _each(product: Callable[..., Tensor], x: Tensor, weights: Sequence[Any]) -> None:
    for weight in weights:
        product(x, weight)


def _copies(weight: Tensor, dtype: torch.dtype) -> WeightStack:
    """Returns equal weights, as those of layers are."""
    bits = GROUPED_BITS.get(dtype, 8 * dtype.itemsize)
    number = STREAM_BYTES // (weight.numel() * bits // 8)
    stack = new_stack(number, *weight.shape, dtype)
    rounded = round_to_groups(weight, bits) if dtype in GROUPED_BITS else weight
    for layer in range(number):
        stack.write(layer, rounded)
    return stack


@entry_point
def _multiply(x, rounded, num_rows, weight, out):
    for row in range(num_rows):
        round_row(x, row, rounded)
    multiply_rows(x, rounded, num_rows, weight, 0, out.shape[1], out, REPLACE)


SPARE_ROWS = max(TILES[0][0], LARGEST_TILE)


@functools.cache
def _room(rows: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what products of one size read and write."""
    rows += SPARE_ROWS
    x, out = np.zeros((rows, padded(inputs)), np.float32), np.empty((rows, outputs), np.float32)
    return x, new_rounded_rows(rows, inputs), out


def _product(x: Tensor, weight: np.ndarray, outputs: int) -> Tensor:
    """Multiplies rows with a packed weight on the calling thread."""
    inputs, rounded, out = _room(*x.shape, outputs)
    inputs[: len(x), : x.shape[1]] = x.numpy()
    _multiply(inputs, rounded, len(x), weight, out)
    return torch.from_numpy(out[: len(x)])


def _forwards(dtypes: list[str], rounds: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    tensors = dict(_random_tensors())
    config = TransformerConfig.from_hf(SMOLLM2_135M)
    results: list[dict[str, Any]] = []
    first: dict[str, float] = {}
    for name in dtypes:
        model = Transformer(config, tensors, DTYPES[name], torch.device("cpu"))
        cache = model.new_cache(256)
        start = time.perf_counter()
        _forward(model, cache, 64)
        first[name] = round(time.perf_counter() - start, 2)
        cache.commit(range(64))
        variants = {
            str(nodes): functools.partial(_forward, model, cache, nodes) for nodes in NODE_COUNTS
        }
        seconds = _minimum(variants, rounds)
        results.append(
            {
                "dtype": name,
                "weights_mb": round(model.num_bytes / 1e6, 1),
                "ms": {nodes: round(s * 1e3, 2) for nodes, s in seconds.items()},
            }
        )
    return results, first


def _forward(model: Transformer, cache: TransformerCache, nodes: int) -> Tensor:
    mask = torch.ones(nodes, nodes, dtype=torch.bool).tril()
    return model.forward(torch.arange(nodes), mask, cache)


def _random_tensors() -> Iterator[tuple[str, Tensor]]:
    config = TransformerConfig.from_hf(SMOLLM2_135M)
    hidden, mlp = config.hidden_size, config.mlp_size
    keys = config.num_kv_heads * config.head_dim
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }
    yield "model.embed_tokens.weight", torch.randn(config.vocab_size, hidden) * 0.02
    yield "model.norm.weight", torch.ones(hidden)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{norm}.weight", torch.ones(hidden)
        for name, shape in shapes.items():
            yield f"{prefix}{name}.weight", torch.randn(shape) * 0.02


def show(result: Result) -> None:
    print(f"reading {result['read_gb_per_s']} GB/s")
    first_product = result["products"][0]
    rows = []
    for row in result["products"]:
        floors = row["floor_ms"]
        cells = [
            f"{ms:.3f}" + (f" ({floors[name]:.3f})" if name in floors else "")
            for name, ms in row["ms"].items()
        ]
        rows.append((f"{row['outputs']} x {row['inputs']}", str(row["rows"]), *cells))
    title = "milliseconds a product, one thread (floor: reading the weight)"
    print_table(title, ("product", "rows", *first_product["ms"]), rows)
    print_table(
        "milliseconds a forward pass, all threads",
        ("dtype", "MB", *map(str, NODE_COUNTS), "first logits, s"),
        (
            (
                row["dtype"],
                str(row["weights_mb"]),
                *(f"{ms:.1f}" for ms in row["ms"].values()),
                str(result["first_logits_s"][row["dtype"]]),
            )
            for row in result["forward"]
        ),
    )


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
