"""Passes of transformers models that are captured: the same logits, and no wait for the device."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from treesnake.models import hf_captured
from treesnake.models.cuda_graphs import GraphCache
from treesnake.models.hf_attention import HfAttention
from treesnake.prompt import Prompt
from treesnake.testing import check_network
from treesnake.testing.captures import RecordedCapture
from treesnake.testing.hosted_gpu import HostedGpu, hosted_gpu, on_hosted_gpu

ALTERNATING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma3_text": ALTERNATING,
    "gpt2": {},
    "gpt_neox": {},
    "llama": {},
    "mistral": {"sliding_window": 6},
}
TEXT = (5, 17, 60, 2, 33, 8, 8, 41, 12, 27, 3)
TOKENS, PARENTS = [50, 1, 2, 3, 1, 9, 4, 30, 7], [-1, 0, 0, 1, 1, 2, 3, 6, -1]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes are captured at their first use."""
    monkeypatch.setattr(hf_captured, "LEAST_USES", 0)


each_family = pytest.mark.parametrize("family", FAMILIES)


def captured(model: Any, recorder: RecordedCapture) -> HfAttention:
    return HfAttention(model, lambda: GraphCache(recorder, "cpu"))


def on_gpu(model: Any, gpu: HostedGpu) -> HfAttention:
    """A copy of a model on a GPU."""
    return HfAttention(on_hosted_gpu(model), lambda: GraphCache(gpu.capture))


def scored(network: HfAttention) -> Tensor:
    """Logits of a tree in one pass, and of another one behind a path of it."""
    state = network.new_state()
    state.prefill(Prompt.of([*TEXT, 0]))
    first = state.extend(TOKENS, PARENTS)
    state.commit((0, 1, 3))
    return torch.cat([first, state.extend([6, 11], [-1, -1])]).cpu()


@each_family
def test_a_model_whose_passes_are_captured_is_a_network(family: str, tiny_model: Any) -> None:
    recorder = RecordedCapture()
    check_network(captured(tiny_model(family, **FAMILIES[family]), recorder))
    assert recorder.num_captured > 0


def test_passes_of_a_size_are_captured_once_and_after_some_uses(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_captured, "LEAST_USES", 2)
    recorder = RecordedCapture()
    state = captured(tiny_model("gpt_neox"), recorder).new_state()
    state.prefill(Prompt.of([*TEXT, 0]))
    counts = []
    for _ in range(5):
        state.extend(TOKENS[:3], PARENTS[:3])
        state.commit((0, 2))
        counts.append(recorder.num_captured)
    assert counts == [0, 0, 1, 1, 1]


@each_family
def test_a_captured_pass_never_waits_for_the_device(family: str, tiny_model: Any) -> None:
    model = tiny_model(family, **FAMILIES[family])
    expected = scored(HfAttention(model))
    with hosted_gpu() as gpu:
        network = on_gpu(model, gpu)
        found = scored(network)
        assert network.captures
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_nobody_waits_for_a_pass_nor_for_what_is_committed(tiny_model: Any) -> None:
    with hosted_gpu() as gpu:
        state = on_gpu(tiny_model("gpt_neox"), gpu).new_state()
        state.prefill(Prompt.of([*TEXT, 0]))
        for _ in range(3):
            gpu.waits.clear()
            state.extend(TOKENS[:3], PARENTS[:3])
            state.commit((0, 2))
    assert gpu.waits == []


def test_a_model_that_waits_is_launched_kernel_by_kernel_and_says_so(
    tiny_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("falcon")
    expected = scored(HfAttention(model))
    with caplog.at_level(logging.WARNING), hosted_gpu() as gpu:
        network = on_gpu(model, gpu)
        torch.testing.assert_close(scored(network), expected, atol=1e-4, rtol=1e-4)
    told = [record.message for record in caplog.records if "captured" in record.message]
    assert len(told) == 1
    assert told[0].startswith("FalconForCausalLM cannot be captured in CUDA graphs")
