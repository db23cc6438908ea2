"""Models whose state nobody knows how to branch: exact by copies and replay, or refused."""

import logging

import pytest
import torch

from treesnake.errors import UnsupportedModelError
from treesnake.models.hf_attention import HfAttention
from treesnake.models.hf_hybrid import HfHybrid
from treesnake.models.hf_network import hf_network
from treesnake.models.hf_replay import HfReplay
from treesnake.prompt import Prompt
from treesnake.testing import check_network
from treesnake.testing.recurrent import RECURRENT_FAMILIES, Stepping

TEXT = [5, 17, 60, 2, 33]


def test_each_model_gets_the_network_that_can_branch_it(tiny_model):
    networks = [
        hf_network(tiny_model("llama")),
        hf_network(tiny_model("lfm2", **RECURRENT_FAMILIES["lfm2"])),
        hf_network(tiny_model("rwkv", attention_hidden_size=32)),
    ]
    assert [type(network) for network in networks] == [HfAttention, HfHybrid, HfReplay]


@pytest.mark.parametrize(
    ("family", "settings", "at_once"),
    [
        ("rwkv", {"attention_hidden_size": 32}, True),
        ("qwen3_next", RECURRENT_FAMILIES["qwen3_next"], True),
        ("falcon_mamba", RECURRENT_FAMILIES["falcon_mamba"], False),  # its scan begins anew
    ],
)
def test_branches_and_replayed_paths_are_stepping(family, settings, at_once, tiny_model, caplog):
    model = tiny_model(family, **settings)
    with caplog.at_level(logging.WARNING, "treesnake"):
        network = HfReplay(model)
    assert network.continues_at_once is at_once
    assert "speculation may well be slower" in caplog.text
    assert ("for every token" in caplog.text) is not at_once
    check_network(network, num_trials=1, tolerance=2e-3)


def test_it_says_that_it_is_slow_once_for_a_model(tiny_model, caplog):
    model = tiny_model("rwkv", attention_hidden_size=32)
    HfReplay(model)
    caplog.clear()
    HfReplay(model)
    assert not caplog.records


def test_a_path_that_ends_within_a_branch_is_run_again(tiny_model):
    model = tiny_model("qwen3_next", **RECURRENT_FAMILIES["qwen3_next"])
    state = HfReplay(model).new_state()
    state.prefill(Prompt.of([*TEXT, 7]))
    state.extend([7, 8, 9], [-1, 0, 1])
    state.commit((0, 1))
    expected = Stepping(model).logits([*TEXT, 7, 8, 4])[-1]
    torch.testing.assert_close(state.extend([4], [-1])[0], expected, atol=1e-3, rtol=1e-3)


def test_a_model_that_hides_its_state_is_refused_with_the_reason(tiny_model):
    model = tiny_model("recurrent_gemma", lru_width=32)
    with pytest.raises(UnsupportedModelError, match="did not tell its cache"):
        hf_network(model)
    with pytest.raises(UnsupportedModelError, match="takes no state to go on from"):
        HfReplay(tiny_model("openai-gpt"))
