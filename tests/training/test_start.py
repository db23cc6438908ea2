"""A drafter begins with what its target knows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from treesnake.drafters.load import load_drafter
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.loading.checkpoint import Checkpoint, find_checkpoint
from treesnake.loading.options import LoadOptions
from treesnake.models.checkpoint import read_network
from treesnake.models.mamba2 import Mamba2
from treesnake.training.learner import Learner, build_learner
from treesnake.training.reporting import NoReporter
from treesnake.training.start import narrowed, start_from_target
from treesnake.training.training_recipe import (
    Mamba2Sizes,
    MambaSizes,
    Start,
    TrainedBefore,
    TrainingRecipe,
)
from treesnake.training.training_run import train_drafter

AS_ATTENTION = Mamba2Sizes(
    hidden_size=32, num_layers=2, num_heads=4, head_dim=8, num_groups=4, state_dim=8
)


@pytest.fixture
def target(target_folder: Path) -> Checkpoint:
    return find_checkpoint(str(target_folder))


def started(target: Checkpoint, sizes: Mamba2Sizes, start: Start) -> Learner:
    learner = build_learner(sizes, target, seed=0)
    start_from_target(learner, start, target)
    return learner


def test_embeddings_and_the_last_norm_are_the_targets_and_can_be_frozen(
    target: Checkpoint,
) -> None:
    start = Start(
        embeddings="target",
        final_norm="target",
        final_norm_scale=0.5,
        frozen=("embeddings", "final_norm"),
    )
    learner = started(target, AS_ATTENTION, start)
    assert torch.equal(learner.embeddings, target.weights["model.embed_tokens.weight"])
    assert torch.equal(learner.final_norm, target.weights["model.norm.weight"] / 2)
    assert learner.output_weight is learner.embeddings
    assert not learner.embeddings.requires_grad
    assert not learner.final_norm.requires_grad
    assert all(weight.requires_grad for weight in learner.output_projections)


def test_a_narrower_drafter_keeps_the_products_of_embeddings() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(50, 4, generator=generator) @ torch.randn(4, 9, generator=generator)
    narrow = narrowed(flat, 5)
    assert narrow.shape == (50, 5)
    torch.testing.assert_close(narrow @ narrow.T, flat @ flat.T, atol=1e-3, rtol=1e-3)
    assert narrowed(flat, 9) is flat
    with pytest.raises(InvalidInputError, match="make the drafter narrower"):
        narrowed(flat, 10)


def test_a_mamba2_begins_as_linear_attention_of_the_targets_layers(target: Checkpoint) -> None:
    learner = started(target, AS_ATTENTION, Start(attention_layers=(1, 0)))
    network = learner.network
    assert isinstance(network, Mamba2)
    weights = target.weights
    for block, layer in zip(network.backbone.blocks, (1, 0), strict=True):
        prefix = f"model.layers.{layer}.self_attn"
        hidden = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(layer))
        projected = block.mixer.project(hidden)
        x, keys, queries = projected.conv_inputs.split(32, dim=-1)
        assert torch.equal(block.mixer.out_proj.weight, weights[f"{prefix}.o_proj.weight"])
        torch.testing.assert_close(queries, hidden @ weights[f"{prefix}.q_proj.weight"].T)
        for found, name in ((keys, "k"), (x, "v")):
            of_two_heads = hidden @ weights[f"{prefix}.{name}_proj.weight"].T
            expected = of_two_heads.unflatten(-1, (2, 8)).repeat_interleave(2, -2).flatten(-2)
            torch.testing.assert_close(found, expected)
        convolved = torch.nn.functional.conv1d(
            torch.nn.functional.pad(projected.conv_inputs.mT, (3, 0)),
            block.mixer.conv1d.weight,
            block.mixer.conv1d.bias,
            groups=96,
        )
        torch.testing.assert_close(convolved.mT, projected.conv_inputs)


@pytest.mark.parametrize(
    ("sizes", "start", "message"),
    [
        (AS_ATTENTION, Start(attention_layers=(1,)), "name one for each"),
        (replace(AS_ATTENTION, num_groups=1), Start(attention_layers=(1, 0)), "heads and groups"),
        (
            replace(AS_ATTENTION, hidden_size=16, num_heads=2, num_groups=1),
            Start(final_norm="target"),
            "choose equal hidden sizes",
        ),
        (AS_ATTENTION, Start(attention_layers=(1, 7)), "has no tensor model"),
    ],
)
def test_what_does_not_fit_is_told(
    sizes: Mamba2Sizes, start: Start, message: str, target: Checkpoint
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        started(target, sizes, start)


def test_a_drafter_that_was_trained_before_goes_on_learning(
    distillation: TrainingRecipe, target: Checkpoint, tmp_path: Path
) -> None:
    before = build_learner(MambaSizes(hidden_size=16, num_layers=1), target, seed=0)
    before.save(tmp_path / "before", torch.float32)
    source = TrainedBefore(source=str(tmp_path / "before"))
    again = build_learner(source, target, seed=1)
    assert torch.equal(again.embeddings, before.embeddings)
    assert all(parameter.requires_grad for parameter in again.parameters())
    folder = train_drafter(replace(distillation, drafter=source), tmp_path / "run", NoReporter())
    found = read_network(folder)
    assert found.config == before.network.config
    assert not torch.equal(found.backbone.embeddings.weight, before.embeddings)


def test_frozen_embeddings_of_the_target_are_stored_if_the_drafter_is_to_stand_alone(
    distillation: TrainingRecipe, target: Checkpoint, tmp_path: Path
) -> None:
    recipe = replace(
        distillation,
        drafter=AS_ATTENTION,
        start=Start(embeddings="target", final_norm="target", frozen=("embeddings",)),
    )
    folder = train_drafter(recipe, tmp_path, NoReporter())
    drafter = load_drafter(str(folder), LoadOptions(dtype="float32", device="cpu"), target=target)
    assert isinstance(drafter, NetworkDrafterModel)
    with pytest.raises(InvalidInputError, match="shares the embeddings of its target"):
        load_drafter(str(folder), LoadOptions(device="cpu"))
    # Of the same run, the drafter alone is written anew.
    assert folder == train_drafter(replace(recipe, stands_alone=True), tmp_path, NoReporter())
    load_drafter(str(folder), LoadOptions(device="cpu"))
    # Embeddings of 32 values are no whole groups of 64, which have 4 bits each.
    exact = target.weights["model.embed_tokens.weight"]
    assert torch.equal(read_network(folder).backbone.embeddings.weight, exact.half().float())
