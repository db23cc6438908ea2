"""Recurrent and hybrid models of transformers: trees, commits and prompts equal plain stepping."""

import math
import random
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from treesnake.errors import InvalidInputError
from treesnake.models.hf_hybrid import HfHybrid
from treesnake.models.hf_recurrent_families import VERIFIED_RECURRENT
from treesnake.pauses import pausing
from treesnake.prompt import Prompt, PromptInput
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import check_network, check_target
from treesnake.testing.recurrent import RECURRENT_FAMILIES, Stepping

KNOWN_FAMILIES = [family for family in RECURRENT_FAMILIES if family in CONFIG_MAPPING]
"""An older transformers lacks the newest ones."""

VOCAB_SIZE = 61
TEXT = [5, 17, 60, 2, 33, 8, 8, 41, 12]
TOKENS = [50, 1, 2, 3, 1, 9, 4, 30, 7, 22, 13]
PARENTS = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 7, 3]
KINDS = ["mamba", "mamba2", "falcon_h1", "qwen3_next", "kimi_linear", "lfm2"]
"""A family for each kind of recurrent layer."""


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=2e-3)


def path(node):
    return [*path(PARENTS[node]), node] if node >= 0 else []


@pytest.fixture(scope="module")
def hybrid(tiny_model):
    networks: dict[str, HfHybrid] = {}

    def make(family: str) -> HfHybrid:
        if family not in networks:
            torch.manual_seed(0)  # of what is no matrix
            model = tiny_model(family, **RECURRENT_FAMILIES[family])
            for module in model.modules():  # Zamba2 limits them in prompts and not in steps
                if hasattr(module, "time_step_limit"):
                    module.time_step_limit = (0.0, math.inf)
            networks[family] = HfHybrid(model)
        return networks[family]

    return make


def filled(network, text=TEXT):
    state = network.new_state()
    state.prefill(Prompt.of([*text, 0]))
    return state


def test_every_verified_family_is_tested():
    assert set(RECURRENT_FAMILIES) == VERIFIED_RECURRENT


@pytest.mark.parametrize("family", KNOWN_FAMILIES)
def test_each_node_is_sequential_decoding_of_its_path(family, hybrid):
    network = hybrid(family)
    stepping, state = Stepping(network.model), filled(network)
    logits = state.extend(TOKENS, PARENTS)
    for leaf in (5, 6, 8, 9, 10):
        nodes = path(leaf)
        whole = stepping.logits([*TEXT, *(TOKENS[node] for node in nodes)])
        close(logits[nodes], whole[len(TEXT) :])
    state.commit(path(9))
    state.extend([7, 8, 9], [-1, 0, 0])
    state.commit((0, 2))
    text = [*TEXT, *(TOKENS[node] for node in path(9)), 7, 9]
    close(state.extend([11], [-1])[0], stepping.logits([*text, 11])[-1])


@pytest.mark.parametrize("family", KNOWN_FAMILIES)
def test_it_is_a_network_and_a_target(family, hybrid):
    network = hybrid(family)
    check_network(network, num_trials=1, tolerance=2e-3)
    if family in KINDS:
        check_target(NetworkTargetModel(network), num_trials=1, tolerance=2e-3)


@pytest.mark.parametrize("family", KNOWN_FAMILIES)
def test_a_greedy_loop_over_trees_says_what_generate_says(family, hybrid):
    network, chance = hybrid(family), random.Random(0)
    expected = network.model.generate(
        torch.tensor([TEXT]), max_new_tokens=48, do_sample=False, eos_token_id=None
    )[0].tolist()
    text, state = list(TEXT), network.new_state()
    state.prefill(Prompt.of(text))
    while len(text) < len(expected):
        tokens, parents = drafted(expected, len(text), chance)
        best = state.extend(tokens, parents).argmax(-1).tolist()
        accepted = [0]
        while (node := child(accepted[-1], best[accepted[-1]], tokens, parents)) is not None:
            accepted.append(node)
        state.commit(accepted)
        text += [best[node] for node in accepted]
    assert text[: len(expected)] == expected


def drafted(expected, length, chance):
    """A tree of four levels, of which some nodes are what the model will say."""
    tokens, parents, spine = [expected[length - 1]], [-1], 0
    for coming in expected[length : length + 4]:
        children = [coming if chance.random() < 0.7 else chance.randrange(VOCAB_SIZE)]
        children += [chance.randrange(VOCAB_SIZE) for _ in range(2)]
        chance.shuffle(children)
        tokens += children
        parents += [spine] * 3
        spine = len(tokens) - 3 + (children.index(coming) if coming in children else 0)
    return tokens, parents


def child(parent, token, tokens, parents):
    nodes = range(len(tokens))
    return next((n for n in nodes if (parents[n], tokens[n]) == (parent, token)), None)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 16, 64, 200])
def test_a_prompt_in_parts_of_any_size_is_stepping(family, size, hybrid, monkeypatch):
    network = hybrid(family)
    for length in (65, 3):  # a chunk's multiple plus one, and less than a convolution sees
        text = random.Random(length).choices(range(VOCAB_SIZE), k=length)
        monkeypatch.setattr(network.passes, "part_size", lambda num_tokens: size)
        expected = Stepping(network.model).logits([*text, 4])[-1]
        parts: list[int] = []
        with pausing(lambda: parts.append(1)):  # noqa: B023 - used within this round
            close(filled(network, text).extend([4], [-1])[0], expected)
        assert len(parts) == -(-length // size), "others may go on before each part"


@pytest.mark.parametrize("family", KINDS)
def test_growth_and_prompts_that_were_interrupted_leave_a_text(family, hybrid):
    network = hybrid(family)
    state = filled(network)
    state.extend(TOKENS[:3], PARENTS[:3])
    expected = filled(network).extend(TOKENS, PARENTS)[3:]
    head = network.model.get_output_embeddings()

    def interrupt(module: Any, inputs: Any) -> None:
        raise KeyboardInterrupt

    handle = head.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        state.extend(TOKENS[3:], PARENTS[3:])
    with pytest.raises(KeyboardInterrupt):
        filled(network)
    handle.remove()
    close(state.extend(TOKENS[3:], PARENTS[3:]), expected)


@pytest.mark.parametrize("family", ["mamba2", "falcon_h1", "qwen3_next"])
def test_what_parts_from_the_text_goes_on_from_a_snapshot(family, hybrid):
    network = hybrid(family)
    runs: list[int] = []
    embedding = network.model.get_input_embeddings()
    handle = embedding.register_forward_hook(
        lambda module, inputs, output: runs.append(output.shape[1])
    )
    state = network.new_state()
    state.prefill(Prompt((*TEXT, 0), borders=(4,)))
    state.extend([3, 4], [-1, 0])
    state.commit((0, 1))
    state.prefill(Prompt((*TEXT[:6], 9, 9, 0)))  # parts after the border
    state.prefill(Prompt((*TEXT[:5], 7, 0)))  # parts after it again
    handle.remove()
    assert runs == [4, 5, 2, 4, 2]
    close(state.extend([4], [-1]), filled(network, [*TEXT[:5], 7]).extend([4], [-1]))


@pytest.mark.parametrize("family", ["mamba", "mamba2", "lfm2"])
def test_a_long_prompt_leaves_no_more_in_memory_than_a_short_one(family, hybrid):
    network = hybrid(family)

    def kept(length):
        state = filled(network, [3] * length)
        layers = state.memory.layers.values()
        tensors = [
            each for layer in layers for each in (*layer.histories.values(), *layer.states.values())
        ]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    assert kept(60) == kept(6)


@pytest.mark.parametrize("family", ["mamba2", "nemotron_h", "zamba2", "bamba"])
def test_step_sizes_are_not_limited_as_they_are_not_in_steps(family, tiny_model, caplog):
    free, limited = (tiny_model(family, **RECURRENT_FAMILIES[family]) for _ in range(2))
    limited.load_state_dict(free.state_dict())
    for model, limit in ((free, math.inf), (limited, 0.05)):
        for module in model.modules():
            if hasattr(module, "time_step_limit"):
                module.time_step_limit = (0.0, limit)
    HfHybrid(free)
    assert "limits the step sizes" not in caplog.text
    cache = Stepping(free).cache_of(TEXT)
    close(Stepping(limited).step(deepcopy(cache), 7, len(TEXT)), Stepping(free).step(cache, 7, 9))
    close(
        filled(HfHybrid(limited)).extend(TOKENS, PARENTS),
        filled(HfHybrid(free)).extend(TOKENS, PARENTS),
    )
    assert "limits the step sizes of a prompt to 0 ... 0.05" in caplog.text


@pytest.mark.parametrize("family", KINDS)
def test_half_precision_is_near_stepping(family, tiny_model):
    model = tiny_model(family, **RECURRENT_FAMILIES[family]).to(torch.bfloat16)
    network = HfHybrid(model)
    text = [*TEXT, *(TOKENS[node] for node in path(9))]
    expected = Stepping(model).logits(text)[-1].float()
    difference = filled(network).extend(TOKENS, PARENTS)[9].float() - expected
    assert difference.norm() < 0.1 * expected.norm()


def test_a_prompt_with_inputs_and_a_model_in_training_are_refused(hybrid, tiny_model):
    pixels = PromptInput({"pixel_values": torch.zeros(2)}, start=1, num_placeholders=2)
    with pytest.raises(InvalidInputError, match="pixel_values"):
        hybrid("mamba2").new_state().prefill(Prompt((5, 9, 9, 4), inputs=(pixels,)))
    with pytest.raises(InvalidInputError, match="training mode"):
        HfHybrid(tiny_model("mamba2", **RECURRENT_FAMILIES["mamba2"]).train())


def test_weights_that_are_no_numbers_are_named(tiny_model):
    model = tiny_model("falcon_h1", **RECURRENT_FAMILIES["falcon_h1"])
    network = HfHybrid(model)
    model.model.layers[1].mamba.in_proj.weight.data[0, 0] = float("nan")
    error = filled(network).broken_model_error([4, 5], [-1, 0])
    assert "model.layers.1.mamba.in_proj.weight" in str(error)
