"""How much memory does a target take, beside its weights and its cache?

    uv run python benchmarks/memory.py --output results/memory.json

Each engine and dtype runs in a process of its own: it imports treesnake, loads the tokenizer, runs
the kernels on a tiny model, notes its resident memory, then loads the target, answers a question,
and notes the largest resident memory that it ever had. The difference is compared with the bytes of
the weights and of the text's keys and values.
"""

import resource
from argparse import ArgumentParser, Namespace
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import psutil
import torch
from frame import Result, run
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake import SpeculativeDecoder
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.loading.checkpoint import end_token_ids, find_checkpoint
from treesnake.loading.options import LoadOptions
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.protocols import Target
from treesnake.targets.load import load_target
from treesnake.targets.network import NetworkTargetModel
from treesnake.tree import TokenTree

SETTINGS = (
    ("native", "float32"),
    ("native", "float16"),
    ("native", "bfloat16"),
    ("native", "int8"),
    ("generic", "float32"),
)
NEW_TOKENS = 128
QUESTION = "Explain in a few paragraphs why the sky is blue and sunsets are red."


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--target", default="smollm2")


def measure(arguments: Namespace) -> Result:
    """Runs one process for each engine and dtype, which imports everything anew."""
    rows = {}
    for engine, dtype in SETTINGS:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            row = process.submit(_measure, arguments.target, engine, dtype).result()
        rows[f"treesnake {engine} {dtype}"] = row
        megabytes = row["weights_and_cache_bytes"] / 1e6
        print(f"{engine} {dtype}: {row['ratio']:.2f}x of {megabytes:.0f} MB", flush=True)
    return {"new_tokens": NEW_TOKENS, "memory": rows}


def _measure(target: str, engine: str, dtype: str) -> Result:
    _run_tiny(dtype)
    tokenizer = find_checkpoint(target).tokenizer
    tokenizer.encode(QUESTION)
    before = psutil.Process().memory_info().rss
    model, loaded = load_target(target, LoadOptions(dtype, "cpu", engine))
    decoder = SpeculativeDecoder(
        Pair(model, NgramDrafterModel()),
        tokenizer=loaded.checkpoint.tokenizer,
        end_token_ids=end_token_ids(loaded.checkpoint),
    )
    generation = decoder.generate(QUESTION, max_new_tokens=NEW_TOKENS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    num_tokens = len(decoder.encode(QUESTION)) + generation.num_emitted
    config = loaded.checkpoint.config
    cache_bytes = (
        2  # keys and values
        * num_tokens
        * config.num_hidden_layers
        * config.num_key_value_heads
        * (config.hidden_size // config.num_attention_heads)
        * (4 if dtype == "float32" else 2)
    )
    wanted = loaded.num_bytes + cache_bytes
    return {
        "weights_bytes": loaded.num_bytes,
        "cache_bytes": cache_bytes,
        "weights_and_cache_bytes": wanted,
        "before_bytes": before,
        "peak_bytes": peak,
        "ratio": (peak - before) / wanted,
    }


def _run_tiny(dtype: str) -> None:
    """Loads and compiles what every model needs, once."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    module = LlamaForCausalLM(config)
    # In half precision, as the target's, so that the same kernels run.
    tensors = {name: tensor.half() for name, tensor in module.state_dict().items()}
    network = Transformer(
        TransformerConfig.from_hf(config), tensors, getattr(torch, dtype), torch.device("cpu")
    )
    _run(NetworkTargetModel(network).new_session(), [1, 2, 3])
    module(torch.tensor([[1, 2, 3]]))


def _run(session: Target, prompt: list[int]) -> None:
    session.prefill(Prompt.of(prompt))
    session.score(TokenTree.chain(prompt[-1:]))


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments)
