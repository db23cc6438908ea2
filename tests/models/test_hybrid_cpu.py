"""Hybrids in one compiled call: the logits of transformers, and bits that only a path decides."""

import random
from functools import cache
from typing import Any

import pytest
import torch
from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

from treesnake.errors import BrokenModelError, InvalidInputError, LoadError
from treesnake.kernels.matrices import INT4
from treesnake.models.hybrid_config import HybridConfig, hybrid_obstacle
from treesnake.models.hybrid_cpu import CpuHybrid
from treesnake.models.tree_network import Part
from treesnake.pauses import pausing
from treesnake.prompt import Prompt
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import check_network, check_target
from treesnake.testing.recurrent import Stepping

VOCAB_SIZE = 61
LAYERS = ["mamba", "attention", "mamba", "mamba", "attention"]
ROTARY: dict[str, Any] = {
    "position_embedding_type": "rope",
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}
TEXT = [5, 17, 60, 2, 33, 8, 8, 41, 12]
TOKENS = [50, 1, 2, 3, 1, 9, 4, 30, 7, 22, 13]
PARENTS = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 7, 3]


def granite(**changes: Any) -> Any:
    """No width is a multiple of a vector's, and no multiplier is 1."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 24,
        "shared_intermediate_size": 50,
        "num_hidden_layers": len(LAYERS),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 600,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "layer_types": LAYERS,
        "mamba_n_heads": 4,
        "mamba_n_groups": 2,
        "mamba_d_state": 10,
        "mamba_d_head": 12,
        "mamba_chunk_size": 4,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.3,
        "logits_scaling": 0.1,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    model = GraniteMoeHybridForCausalLM(GraniteMoeHybridConfig(**(sizes | changes))).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def packed(model: Any, dtype: torch.dtype = torch.float32) -> CpuHybrid:
    return CpuHybrid(HybridConfig.from_hf(model.config), model.state_dict(), dtype)


@cache
def hybrid(dtype: torch.dtype = torch.float32) -> CpuHybrid:
    return packed(granite(), dtype)


def filled(network: CpuHybrid, text: list[int] = TEXT) -> Any:
    state = network.new_state()
    state.prefill(Prompt.of([*text, 0]))
    return state


@pytest.mark.parametrize(
    "changes",
    [{}, ROTARY, {"tie_word_embeddings": False, "mamba_proj_bias": True, "mamba_conv_bias": False}],
    ids=["no positions", "rotary positions", "biases"],
)
def test_it_says_what_transformers_says(changes: dict[str, Any]) -> None:
    model = granite(**changes)
    expected = Stepping(model).logits([*TEXT, *TOKENS])
    state = filled(packed(model))
    logits = state.extend(TOKENS, range(-1, len(TOKENS) - 1))
    torch.testing.assert_close(logits, expected[len(TEXT) :], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_bits_depend_on_nothing_but_the_path(dtype: torch.dtype) -> None:
    network = hybrid(dtype)
    check_network(network, num_trials=2, tolerance=0)
    check_target(NetworkTargetModel(network), num_trials=1, tolerance=0)


def test_a_long_prompt_runs_part_by_part_and_outgrows_its_rows() -> None:
    text = [random.Random(1).randrange(VOCAB_SIZE) for _ in range(530)]
    at_once, in_pieces = filled(hybrid(), text), filled(hybrid(), text[:3])
    parts: list[int] = []
    with pausing(lambda: parts.append(1)):
        filled(hybrid(), text)
    assert len(parts) == 5, "others may go on before each"
    for end in (4, 130, 131, 530):
        in_pieces.prefill(Prompt.of([*text[:end], 0]))
    assert at_once.extend([7], [-1]).equal(in_pieces.extend([7], [-1]))
    assert at_once.length == len(text)


def test_a_copy_of_fewer_bits_grows_trees_on_the_text_of_the_target() -> None:
    model = granite()
    network, coarse = packed(model, torch.int8), packed(model, INT4)
    state = filled(network)
    borrowed = state.lent_to(coarse)
    drafted = borrowed.extend(TOKENS, PARENTS)
    borrowed.commit([])
    assert not drafted.equal(state.extend(TOKENS, PARENTS))
    state.commit([0, 1])
    expected = filled(network, [*TEXT, *TOKENS[:2]])
    assert state.extend([7], [-1]).equal(expected.extend([7], [-1]))
    assert coarse.num_bytes < network.num_bytes
    with pytest.raises(InvalidInputError, match="another one"):
        state.lent_to(packed(granite(hidden_size=48, mamba_d_head=24)))


def test_a_part_with_the_state_of_another_network_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="another network"):
        hybrid().extend_all([Part(filled(packed(granite())), [1], [-1])])


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("model.embed_tokens.weight", "the embedding"),
        ("model.layers.1.self_attn.q_proj.weight", "layer 1"),
        ("model.layers.3.mamba.in_proj.weight", "layer 3"),
        ("model.norm.weight", "the output layer"),
    ],
)
def test_the_first_layer_that_makes_no_numbers_is_named(name: str, where: str) -> None:
    model = granite()
    model.state_dict()[name].fill_(torch.nan)
    session = NetworkTargetModel(packed(model)).new_session()
    session.prefill(Prompt.of(TEXT))
    error = filled(packed(model))
    assert isinstance(error.broken_model_error(TOKENS[:2], [-1, 0]), BrokenModelError)
    assert packed(model).find_broken_layer(TEXT) == where


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_local_experts": 2, "num_experts_per_tok": 1}, "no experts"),
        ({"layer_types": ["mamba"] * len(LAYERS)}, "two kinds"),
        ({"hidden_act": "relu"}, "'relu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"time_step_limit": (0.1, 1.0)}, "step sizes"),
        ({"residual_multiplier": 0.0}, "multiplies its branches"),
        (
            ROTARY | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "plain rotary positions",
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_it_cannot_run_it_says(changes: dict[str, Any], reason: str) -> None:
    assert reason in (hybrid_obstacle(granite(**changes).config) or "")
    assert hybrid_obstacle(granite().config) is None


def test_weights_that_the_config_does_not_promise_are_refused() -> None:
    model = granite()
    config, tensors = HybridConfig.from_hf(model.config), model.state_dict()
    del tensors["model.layers.2.mamba.A_log"]
    with pytest.raises(LoadError, match=r"layers\.2\.mamba\.A_log"):
        CpuHybrid(config, tensors)
