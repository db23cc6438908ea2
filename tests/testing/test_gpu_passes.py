"""Passes for a GPU can be captured, and take few kernels: known from tensors without values."""

from collections.abc import Callable

import pytest
import torch
from transformers import PretrainedConfig

from treesnake.shape import LevelWidths
from treesnake.testing.captures import WatchedCapture
from treesnake.testing.gpu_passes import (
    BRANCHINGS,
    DECODERS,
    TREE,
    decoder,
    draft,
    gpu_without_values,
    grow,
    score,
    state_space_network,
)
from treesnake.testing.pass_costs import CountedCapture, KernelCost

pytest.importorskip("triton")

MOST_KERNELS = 8
"""Of a layer."""

PAPER_TREE = LevelWidths((3, 2, 2, 1, 1))
HALF = torch.bfloat16

each_architecture = pytest.mark.parametrize("architecture", ["mamba", "mamba2"])


def pairs(num_nodes: int) -> tuple[int, ...]:
    """A tree in which nodes have two children."""
    return (-1, *((node - 1) // 2 for node in range(1, num_nodes)))


@each_architecture
@pytest.mark.parametrize("branching", BRANCHINGS)
def test_levels_of_a_drafter_never_wait_for_the_device(architecture: str, branching: type) -> None:
    capture = WatchedCapture()
    with gpu_without_values():
        draft(state_space_network(architecture, HALF, 2, capture), branching, TREE)
    assert capture.num_captured == 2


@pytest.mark.parametrize("config", DECODERS, ids=lambda config: config.model_type)
def test_trees_of_a_target_never_wait_for_the_device(config: PretrainedConfig) -> None:
    capture = WatchedCapture()
    with gpu_without_values():
        logits = score(decoder(config, HALF, 2, capture), TREE, 20)
    assert logits.shape == (len(TREE), config.vocab_size)
    assert capture.num_captured == 1


@each_architecture
def test_a_whole_fixed_tree_never_waits_for_the_device(architecture: str) -> None:
    capture = WatchedCapture()
    with gpu_without_values():
        grow(state_space_network(architecture, HALF, 2, capture), PAPER_TREE.as_tree())
    assert capture.num_captured == 1


def of_a_layer(run: Callable[[int], list[KernelCost]]) -> int:
    """The kernels that a second layer adds."""
    return len(run(2)) - len(run(1))


@pytest.mark.parametrize("num_nodes", [1, 64])
@pytest.mark.parametrize("config", DECODERS, ids=lambda config: config.model_type)
def test_a_target_takes_few_kernels_a_layer(config: PretrainedConfig, num_nodes: int) -> None:
    tree = pairs(num_nodes)

    def run(num_layers: int) -> list[KernelCost]:
        capture = CountedCapture()
        with gpu_without_values():
            score(decoder(config, HALF, num_layers, capture), tree, 500)
        return capture.kernels

    assert 4 <= of_a_layer(run) <= MOST_KERNELS


@each_architecture
def test_a_level_of_a_drafter_takes_few_kernels_a_layer(architecture: str) -> None:
    def run(num_layers: int) -> list[KernelCost]:
        capture = CountedCapture()
        with gpu_without_values():
            network = state_space_network(architecture, HALF, num_layers, capture)
            draft(network, type(network.new_state().memory.bank.branching), TREE)
        return capture.kernels

    assert 4 <= of_a_layer(run) <= MOST_KERNELS


@each_architecture
def test_a_whole_fixed_tree_is_one_capture_of_few_kernels_a_layer(architecture: str) -> None:
    def run(num_layers: int) -> list[KernelCost]:
        capture = CountedCapture()
        with gpu_without_values():
            grow(state_space_network(architecture, HALF, num_layers, capture), PAPER_TREE.as_tree())
        return capture.kernels

    levels = PAPER_TREE.depth
    assert 4 * levels <= of_a_layer(run) <= MOST_KERNELS * levels
