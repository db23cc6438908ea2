"""Passes of networks on a GPU that is not there: tensors have a device and shapes, no values.

So it is known before any GPU runs them which kernels passes launch, and that what is captured
never waits for the device.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen3Config

from treesnake.kernels.dispatch import conv_kernels, delta_kernels
from treesnake.kernels.tree_rows import TreeRows
from treesnake.models.cuda_graphs import Capture, GraphCache
from treesnake.models.fixed_growth import later_tensors
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space import StateSpaceNetwork
from treesnake.models.state_space_banks import StateSpaceBanks
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.transformer_inputs import Size
from treesnake.models.transformer_layers import promised_tensors
from treesnake.models.transformer_pass import NewNodes
from treesnake.models.transformer_torch import TorchEngine
from treesnake.models.tree_network import Part
from treesnake.prompt import Prompt
from treesnake.shape import FixedTree
from treesnake.states.branching import BranchingKind, PathSums, StateCopies
from treesnake.states.tree_layout import RowsSize, tree_layout, tree_rows
from treesnake.testing.captures import WatchedCapture
from treesnake.testing.triton_kernels import DeviceKind, KernelCall, noted_launches

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TREE = (-1, 0, 0, 1)
LARGE_TREE = (-1, *range(40))
BRANCHINGS: tuple[BranchingKind, ...] = (StateCopies, PathSums)

LLAMA_3_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)
SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
MISTRAL_7B = MistralConfig(sliding_window=4096, max_position_embeddings=32768)
QWEN3_8B = Qwen3Config(
    hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=40960
)
DECODERS = (LLAMA_3_8B, SMOLLM2_135M, MISTRAL_7B, QWEN3_8B)


@contextmanager
def gpu_without_values() -> Iterator[list[KernelCall]]:
    """Makes every tensor one without values, on a GPU if it is asked for there.

    Gives the launches of Triton kernels, none of which runs.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), noted_launches() as calls:
            yield calls
    finally:
        for kept in (tree_layout, later_tensors):
            kept.cache_clear()  # others need values


def kernel_calls(
    dtype: torch.dtype,
    device: DeviceKind,
    decoders: Sequence[PretrainedConfig] = DECODERS,
) -> list[KernelCall]:
    """Returns the ways in which networks with weights of a dtype call kernels, each once."""
    products = import_module("treesnake.kernels.triton.products")
    on_amd = device.backend == "hip"
    precision = products.PRECISION_ON_AMD if on_amd else products.PRECISION
    with (
        patch.object(products, "PRECISION", precision),
        gpu_without_values() as calls,
    ):
        for architecture in ("mamba", "mamba2"):
            for branching in BRANCHINGS:
                draft(state_space_network(architecture, dtype), branching, TREE)
        for config in decoders:
            engine = decoder(config, dtype)
            for tree, length in ((TREE, 20), (LARGE_TREE, 2000)):
                score(engine, tree, length)
        learn()
        _mix(dtype)
    return list(dict.fromkeys(calls))


def state_space_network(
    architecture: str,
    dtype: torch.dtype,
    num_layers: int = 1,
    capture: Capture | None = None,
) -> StateSpaceNetwork[Any]:
    """Returns a network with layers of the size of those with 130 million weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # parameters without values cannot be moved to another one
    try:
        with CUDA:
            if architecture == "mamba":
                network: StateSpaceNetwork[Any] = Mamba(MambaConfig(num_layers=num_layers))
            else:
                network = Mamba2(Mamba2Config(num_layers=num_layers))
    finally:
        torch.set_default_dtype(before)
    network.banks = StateSpaceBanks(network.config.state_shape, capture or WatchedCapture())
    return network.eval()


def draft(network: StateSpaceNetwork[Any], branching: BranchingKind, tree: tuple[int, ...]) -> None:
    """Reads a prompt, runs a tree in two passes for each of two texts, and commits a path."""
    states = [network.new_state(branching) for _ in range(2)]
    for state in states:
        state.prefill(Prompt.of(range(20)))
    for nodes in (slice(0, 1), slice(1, None)):
        parents = list(tree[nodes])
        network.extend_all([Part(state, [7] * len(parents), parents) for state in states])
    for state in states:
        state.commit([0, 1])


def grow(network: StateSpaceNetwork[Any], shape: FixedTree) -> None:
    """Drafts a whole tree in one pass; which tokens it chose cannot be read."""
    state = network.new_state()
    state.prefill(Prompt.of(range(20)))
    with suppress(DataDependentOutputException):
        network.grow_fixed(Part(state, [7], [-1]), shape)


def learn() -> None:
    """Runs a scan forwards and backwards, the one kernel with a gradient of its own.

    Gradients of tensors on a GPU ask the driver, so these are on the host; kernels do not care.
    """
    shapes = ((2, 40, 1536), (2, 40, 1536), (1536, 16), (2, 40, 16), (2, 40, 16), (1536,))
    leaves = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    scan = import_module("treesnake.kernels.triton.ssm_scan").scan
    outputs, _ = scan(*leaves, torch.zeros(2, 1536, 16))
    outputs.sum().backward()


def decoder(
    config: PretrainedConfig,
    dtype: torch.dtype,
    num_layers: int = 1,
    capture: Capture | None = None,
) -> TorchEngine:
    """Returns our decoder with the first layers of a model."""
    fields = {**config.to_dict(), "num_hidden_layers": num_layers}
    fields.pop("layer_types", None)  # one for each layer
    changed = type(config).from_dict(fields)
    with unset_fake_temporarily():  # rotary frequencies are numbers
        ours = TransformerConfig.from_hf(changed)
    tensors = {
        name: torch.empty(shape, dtype=dtype, device=CUDA)
        for name, shape in promised_tensors(ours).shapes.items()
    }
    graphs: GraphCache[Size] = GraphCache(capture or WatchedCapture())
    return TorchEngine(ours, tensors, dtype, CUDA, graphs)


def score(engine: TorchEngine, tree: Sequence[int], length: int) -> Tensor:
    """Runs a tree behind a text; returns the logits."""
    cache = engine.new_cache(length + len(tree))
    cache.commit(range(length))
    mask = tree_layout(tuple(tree), 1, CPU).ancestor_mask
    nodes = NewNodes(torch.zeros(len(tree), dtype=torch.int64), mask, cache, len(tree))
    return engine.forward_all([nodes])[0]


def _mix(dtype: torch.dtype) -> None:
    """Runs what only hybrids of transformers do: filters, and the gated delta rule."""
    channels, heads, key_dim, value_dim = 1024, 16, 128, 128
    inputs, weight, history = (
        torch.zeros(*shape, dtype=dtype, device=CUDA)
        for shape in ((1, 4, channels), (channels, 4), (1, 3, channels))
    )
    conv = conv_kernels(CUDA)
    conv.causal_filter(inputs[0], weight, None, history[0])
    conv.tree_filter(inputs, weight, None, history, _rows())
    key = torch.zeros(4, heads, key_dim, dtype=dtype, device=CUDA)
    value, beta = key.new_zeros(4, heads, value_dim), key.new_zeros(4, heads)
    state = torch.zeros(heads, key_dim, value_dim, device=CUDA)
    mask = torch.ones(4, 4, dtype=torch.bool, device=CUDA)
    delta = delta_kernels(CUDA)
    for decays in (1, key_dim):
        log_decay = torch.zeros(4, heads, decays, device=CUDA)
        delta.scan(key, key, value, log_decay, beta, state)
        delta.extend_sums(key, key, value, log_decay, beta, mask, state)
        delta.commit_sums(key, value, log_decay, beta, state)


def _rows() -> TreeRows:
    layout = tree_layout(TREE, 4, CPU)
    rows = tree_rows([layout], [4], [0], RowsSize(trees=1, new=4, nodes=4), spare_row=3)
    return TreeRows(**{name: tensor.to(CUDA) for name, tensor in vars(rows).items()})
