"""Output layers are read, exchanged, and what they see is what logits are made of."""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import Tensor

from treesnake.kernels.matrices import INT4
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.output_layer import OutputLayer
from treesnake.models.state_space_cpu import CpuMamba, CpuMamba2, to_cpu

VOCAB = 50
KEPT = torch.tensor([7, 3, 41, 20, 0])
TEXT = [1, 5, 9, 2, 2, 40]
PARENTS = range(-1, len(TEXT) - 1)

TOLERANCES = {torch.float32: 1e-4, torch.int8: 0.06, INT4: 0.6}


@cache
def readable(architecture: str) -> Mamba | Mamba2:
    torch.manual_seed(0)
    if architecture == "mamba":
        return Mamba(MambaConfig(vocab_size=VOCAB, hidden_size=20, num_layers=2))
    sizes = {"hidden_size": 20, "num_layers": 2, "num_heads": 4, "head_dim": 10, "state_dim": 20}
    return Mamba2(Mamba2Config(vocab_size=VOCAB, **sizes))


def packed(
    architecture: str, dtype: torch.dtype = torch.float32, kept: Tensor | None = None
) -> CpuMamba | CpuMamba2:
    return to_cpu(readable(architecture), dtype, kept)


def networks() -> list[tuple[OutputLayer, float]]:
    found: list[tuple[OutputLayer, float]] = []
    for architecture in ("mamba", "mamba2"):
        found += [(packed(architecture, dtype, KEPT), TOLERANCES[dtype]) for dtype in TOLERANCES]
        found.append((packed(architecture), 1e-4))
        found.append((deepcopy(readable(architecture)), 1e-4))
    return found


def hidden_of(network: OutputLayer, token_ids: Sequence[int] = TEXT) -> Tensor:
    return torch.cat([*network.hidden_states(token_ids)])


def logits_of(network: OutputLayer) -> Tensor:
    state = network.new_state()
    return state.extend(TEXT, PARENTS)


@pytest.mark.parametrize("number", range(10))
def test_logits_are_the_output_layer_times_what_it_sees(number: int) -> None:
    network, tolerance = networks()[number]
    hidden, weight = hidden_of(network), network.output_weight()
    logits = logits_of(network)
    assert (hidden @ weight.T - logits).abs().max() <= tolerance * logits.abs().max()


@pytest.mark.parametrize("number", range(10))
def test_an_exchanged_output_layer_makes_other_logits_of_the_same_states(number: int) -> None:
    network, tolerance = networks()[number]
    hidden, weight = hidden_of(network), network.output_weight()
    other = weight.flip(0) * 2
    network.replace_output(other)
    logits = logits_of(network)
    assert torch.equal(hidden_of(network), hidden)
    assert (hidden @ other.T - logits).abs().max() <= tolerance * logits.abs().max()
    assert (network.output_weight() - other).abs().max() <= tolerance * other.abs().max()
    network.replace_output(other / 2)
    assert (logits_of(network) * 2 - logits).abs().max() <= tolerance * logits.abs().max()


@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
def test_an_output_layer_as_rounded_as_it_is_is_exchanged_without_a_change(
    architecture: str,
) -> None:
    network = packed(architecture, torch.int8, KEPT)
    logits = logits_of(network)
    network.replace_output(network.output_weight())
    assert torch.equal(logits_of(network), logits)


def test_states_of_texts_longer_than_a_part_are_those_of_one_text() -> None:
    network = packed("mamba2")
    text = [number % VOCAB for number in range(300)]
    whole = hidden_of(network, text)
    assert torch.allclose(whole[:200], hidden_of(network, text[:200]), atol=1e-5)
    assert len(whole) == 300
    assert len([*network.hidden_states(text)]) > 1  # others may run in between


def test_weights_that_were_exchanged_count_as_bytes_of_the_network() -> None:
    network = packed("mamba2")
    before = network.num_bytes
    network.replace_output(network.output_weight())
    assert network.num_bytes > before  # it was tied to the embeddings, and is not any more
