"""The one dispatch in transformers: complete, harmless outside our passes, loud when it breaks."""

import sys
from typing import Any

import pytest
import torch

from treesnake.errors import UnsupportedModelError
from treesnake.models import hf_dispatch
from treesnake.models.hf_hybrid import HfHybrid
from treesnake.prompt import Prompt
from treesnake.testing.recurrent import RECURRENT_FAMILIES

FUNCTIONS = {
    "falcon_h1": {"causal_conv1d_fn", "mamba2_chunk_scan"},
    "kimi_linear": {"causal_conv1d_fn", "chunk_kimi_delta_attention"},
    "lfm2": {"causal_conv1d_fn"},
    "mamba": {"causal_conv1d_fn", "mamba_selective_scan"},
    "mamba2": {"causal_conv1d_fn", "mamba2_chunk_scan"},
    "qwen3_next": {"causal_conv1d_fn", "torch_chunk_gated_delta_rule"},
}


def made(family, tiny_model):
    model = tiny_model(family, **RECURRENT_FAMILIES[family])
    return model, sys.modules[type(model).__module__]


def run(network: HfHybrid) -> Any:
    state = network.new_state()
    state.prefill(Prompt.of([3, 4, 5]))
    return state.extend([5, 6, 7], [-1, 0, 0])


@pytest.mark.parametrize("family", RECURRENT_FAMILIES)
def test_each_family_has_functions_that_are_dispatched(family, tiny_model):
    model, module = made(family, tiny_model)
    hf_dispatch.install(model)
    found = {name for name, each in vars(module).items() if hasattr(each, "dispatches_to")}
    assert "causal_conv1d_fn" in found
    assert found >= FUNCTIONS.get(family, set())


def test_it_is_installed_once_and_changes_nothing_outside_of_a_pass(tiny_model):
    model, module = made("mamba2", tiny_model)
    token_ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        before = model(token_ids).logits
        network = HfHybrid(model)
        dispatch = vars(module)["mamba2_chunk_scan"]
        run(HfHybrid(model))
        assert vars(module)["mamba2_chunk_scan"] is dispatch
        assert torch.equal(model(token_ids).logits, before)
        assert torch.equal(run(network), run(HfHybrid(model)))


@pytest.mark.parametrize(
    ("family", "function", "complaint"),
    [
        ("mamba2", "mamba2_chunk_scan", "recurrence that is not run by a function known here"),
        ("mamba", "causal_conv1d_fn", "convolution that is not run by causal_conv1d_fn"),
        ("lfm2", "causal_conv1d_fn", "convolution that is not run by causal_conv1d_fn"),
        ("qwen3_next", "torch_chunk_gated_delta_rule", "recurrence that is not run"),
    ],
)
def test_a_mixer_that_calls_another_function_is_refused(
    family, function, complaint, tiny_model, monkeypatch
):
    model, module = made(family, tiny_model)
    network = HfHybrid(model)
    run(network)
    renamed = vars(module)[function].__wrapped__
    monkeypatch.setattr(module, function, renamed)
    with pytest.raises(UnsupportedModelError, match=complaint):
        run(network)


def test_a_function_with_other_arguments_is_refused(tiny_model, monkeypatch):
    model, module = made("mamba2", tiny_model)

    def mamba2_chunk_scan(states: Any, steps: Any) -> Any:
        raise AssertionError("not to be called")

    monkeypatch.setattr(module, "mamba2_chunk_scan", mamba2_chunk_scan)
    with pytest.raises(UnsupportedModelError, match="takes the arguments states, steps"):
        hf_dispatch.install(model)


def test_a_layer_that_does_not_tell_its_cache_is_refused(tiny_model):
    model = tiny_model("recurrent_gemma", lru_width=32)
    with pytest.raises(UnsupportedModelError, match="keeps a recurrent state and did not tell"):
        HfHybrid(model)
