"""A model that gives no numbers says where it broke."""

import threading

import pytest
import torch

from treesnake.errors import BrokenModelError
from treesnake.models.hf_attention import HfAttention
from treesnake.models.hf_diagnosis import broken_model_error
from treesnake.prompt import Prompt


def score(model, token_ids=(3,), parents=(-1,)):
    """What a target does: it looks at the logits, and where they are no numbers asks why."""
    state = HfAttention(model).new_state()
    state.prefill(Prompt((1, 2, 3)))
    if not state.extend(token_ids, parents).isfinite().all():
        raise state.broken_model_error(token_ids, parents)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_weight_is_named(value, tiny_model):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    with pytest.raises(
        BrokenModelError, match=r"weights are broken: model\.layers\.1\.mlp\.up_proj\.weight holds"
    ):
        score(model)


def test_a_layer_that_overflows_is_named_with_its_dtype(tiny_model):
    model = tiny_model("llama").half()
    with torch.no_grad():
        model.model.layers[2].self_attn.v_proj.weight.mul_(3e4)
    with pytest.raises(
        BrokenModelError,
        match=r"model\.layers\.2\.self_attn\.v_proj is the first .* float16 is probably too narrow",
    ):
        score(model)


def test_broken_logits_of_any_node_are_noticed(tiny_model):
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")
    score(model)
    with pytest.raises(BrokenModelError, match=r"model\.embed_tokens\.weight"):
        score(model, (3, 4, 5), (-1, 0, 0))


def test_nothing_is_left_on_the_model(tiny_model):
    model = tiny_model("llama").half()
    with torch.no_grad():
        model.model.layers[2].self_attn.v_proj.weight.mul_(3e4)
    with pytest.raises(BrokenModelError):
        score(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_what_other_threads_run_is_not_listened_to():
    layers = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 2))
    broken = torch.full((1, 2), float("nan"))

    def rerun():
        other = threading.Thread(target=layers, args=(broken,))
        other.start()
        other.join()
        layers[1](broken)

    assert "1 is the first whose output is not finite" in str(broken_model_error(layers, rerun))
