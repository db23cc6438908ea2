"""Texts are generated the way of a GPU on a machine without one, and hardly ever wait for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake.chance import TorchRng
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.errors import BrokenModelError
from treesnake.generate import generate
from treesnake.models.cuda_graphs import GraphCache
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space_banks import StateSpaceBanks
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.search.static import StaticSearch
from treesnake.shape import parse_shape
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing.hosted_gpu import CPU, CUDA, HostedGpu, hosted_gpu
from treesnake.tree import TokenTree

VOCAB = 61
CONFIG = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
NUM_WARM = 3
"""Steps in which memory moves, and no draft is whole."""


@dataclass(frozen=True)
class Written:
    """A text, and how often each of its steps waited for the GPU."""

    tokens: list[int]
    waits: list[int]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    return {
        name: 5 * tensor if tensor.ndim == 2 else tensor
        for name, tensor in model.state_dict().items()
    }


@pytest.fixture
def gpu() -> Iterator[HostedGpu]:
    with hosted_gpu() as gpu:
        yield gpu


def written(
    weights: dict[str, torch.Tensor],
    shape: str,
    params: SamplingParams,
    gpu: HostedGpu | None = None,
) -> Written:
    """A text by a target and a drafter on a GPU, or on a CPU if there is none."""
    device = CPU if gpu is None else CUDA
    target = Transformer(TransformerConfig.from_hf(CONFIG), weights, torch.float32, device)
    torch.manual_seed(1)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_layers": 2, "state_dim": 8}
    with device:
        drafter = Mamba2(Mamba2Config(**sizes, num_heads=4, head_dim=8)).eval()
    if gpu is not None:
        target._engine._graphs = GraphCache(gpu.capture)
        drafter.banks = StateSpaceBanks(drafter.config.state_shape, gpu.capture)
    steps = generate(
        NetworkTargetModel(target).new_session(),
        NetworkDrafterModel(drafter).new_session(),
        Prompt.of([3, 4, 5, 6]),
        search=StaticSearch(parse_shape(shape)),
        params=params,
        rng=TorchRng(0),
        max_length=40,
    )
    tokens, counts = list[int](), [0]
    for step in steps:
        tokens += step.emitted
        counts.append(0 if gpu is None else len(gpu.waits))
    return Written(tokens, [after - before for before, after in pairwise(counts)])


GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=1.0)
both_ways = pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])


@both_ways
@pytest.mark.parametrize(
    ("shape", "most_waits"), [("off", 1), ("3x2x1 chosen", 2), ("best_first(2, 2, 4)", 3)]
)
def test_a_step_waits_once_for_what_is_accepted_and_once_for_each_pass_of_the_drafter(
    weights: dict[str, torch.Tensor],
    gpu: HostedGpu,
    params: SamplingParams,
    shape: str,
    most_waits: int,
) -> None:
    text = written(weights, shape, params, gpu)
    steady = text.waits[NUM_WARM:-NUM_WARM]
    assert len(steady) > NUM_WARM
    assert max(steady) == most_waits


@both_ways
def test_a_gpu_writes_the_text_of_a_cpu(
    weights: dict[str, torch.Tensor], params: SamplingParams
) -> None:
    expected = written(weights, "off", params).tokens
    with hosted_gpu() as gpu:
        found = written(weights, "3x2x1 chosen", params, gpu).tokens
    assert found == expected


def test_a_gpu_tells_of_a_broken_model_when_its_tree_is_committed(
    weights: dict[str, torch.Tensor], gpu: HostedGpu
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    broken = {**weights, name: torch.full_like(weights[name], float("nan"))}
    config = TransformerConfig.from_hf(CONFIG)
    network = Transformer(config, broken, torch.float32, CUDA)
    network._engine._graphs = GraphCache(gpu.capture)
    session = NetworkTargetModel(network).new_session()
    session.prefill(Prompt.of([3, 4, 5]))
    for use in (lambda: session.commit([0]), lambda: session.score(TokenTree.chain([6]))):
        session.score(TokenTree.chain([5]))
        with pytest.raises(BrokenModelError, match="layer 1"):
            use()


def test_whoever_reads_waits(gpu: HostedGpu) -> None:
    number = torch.tensor([2.0, 0.0], device=CUDA)
    gpu.waits.clear()
    for read in (
        number[0].item,
        number.tolist,
        lambda: number.numpy(force=True),
        number.nonzero,
        lambda: number[number > 1],
        number.cpu,
    ):
        read()
    assert len(gpu.waits) == 6
    assert (number * 2 + 1).sum().device == CUDA
    assert len(gpu.waits) == 6


def test_what_is_sent_must_be_pinned(gpu: HostedGpu) -> None:
    values, buffer = torch.ones(3), torch.zeros(3, device=CUDA)
    gpu.waits.clear()
    buffer.copy_(values.pin_memory(), non_blocking=True)
    assert gpu.waits == []
    for send in (
        lambda: buffer.copy_(values, non_blocking=True),
        lambda: buffer.copy_(values.pin_memory()),
        lambda: values.to(CUDA),
        lambda: buffer[[0, 2]],
    ):
        send()
    assert len(gpu.waits) == 4
    assert buffer.tolist() == [1, 1, 1]


def test_a_captured_pass_must_not_wait(gpu: HostedGpu) -> None:
    number = torch.zeros(1, device=CUDA)
    assert gpu.capture(lambda: number + 1, CUDA)().tolist() == [1]
    with pytest.raises(RuntimeError, match="not permitted when a stream is capturing"):
        gpu.capture(lambda: number + number.item(), CUDA)()
