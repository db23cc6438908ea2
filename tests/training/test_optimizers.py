"""Updates have the size and the direction that they are meant to have."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.loading.checkpoint import find_checkpoint
from treesnake.training.learner import build_learner
from treesnake.training.muon import UPDATE_SIZE, Muon, fused_parts, orthogonal, shared_out
from treesnake.training.optimizers import learning_rate, new_optimizers
from treesnake.training.training_recipe import Mamba2Sizes, PretrainStage

STAGE = PretrainStage(name="p", data=("x",), learning_rate=1.0, warmup=0.1, final_rate=0.2)
SIZES = Mamba2Sizes(hidden_size=32, num_layers=1, num_heads=4, head_dim=16, state_dim=8)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(STAGE, update, 100) for update in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9] < 1 == rates[10]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.2, abs=0.01)
    assert learning_rate(replace(STAGE, warmup=0.0), 0, 1) == 1.0


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 9))
def test_muon_makes_singular_values_about_equal(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    update = orthogonal(matrix) / (UPDATE_SIZE * max(rows, columns) ** 0.5)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = torch.diagonal(left.T @ update @ right.T)
    well_conditioned = values > 0.05 * values.max()
    assert (found[well_conditioned] > 0.5).all()
    assert (found < 1.4).all()


def test_maps_that_share_a_matrix_are_made_orthogonal_apart() -> None:
    weight = torch.nn.Parameter(torch.zeros(6, 8))
    weight.grad = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    optimizer = Muon([weight], {id(weight): [2, 4]}, lr=1.0, weight_decay=0.0)
    optimizer.step()
    apart = [orthogonal(weight.grad[:2]), orthogonal(weight.grad[2:])]
    torch.testing.assert_close(-weight.detach(), torch.cat(apart))


def test_processes_have_about_as_much_to_make_orthogonal() -> None:
    assert shared_out([6, 3, 6, 3, 6, 3], 2) == [0, 1, 1, 1, 0, 0]
    assert shared_out([5, 5], 1) == [0, 0]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_weight_has_one_optimizer_and_vectors_do_not_decay(
    name: str, target_folder: Path
) -> None:
    learner = build_learner(SIZES, find_checkpoint(str(target_folder)), seed=0)
    stage = replace(STAGE, optimizer=name)
    groups = [group for each in new_optimizers(learner, stage) for group in each.param_groups]
    updated = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(updated) == sorted(map(id, learner.parameters()))
    for group in groups:
        assert all((group["weight_decay"] > 0) == (each.ndim == 2) for each in group["params"])
    (rows,) = fused_parts(learner).values()
    assert rows == [64, 64, 16 + 4]
