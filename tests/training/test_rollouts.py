"""The drafter speaks, and learns what the target would have said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from treesnake.errors import InvalidInputError
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.training.distillation_loss import DistillationLoss, Objective
from treesnake.training.learner import build_learner
from treesnake.training.reporting import NoReporter
from treesnake.training.rollouts import roll_out
from treesnake.training.shards import text_shard
from treesnake.training.texts import Batch, Texts
from treesnake.training.training_recipe import (
    DistilStage,
    Mamba2Sizes,
    TrainingRecipe,
    check_training_recipe,
)
from treesnake.training.training_run import train_drafter

SIZES = Mamba2Sizes(hidden_size=32, num_layers=1, num_heads=4, head_dim=16, state_dim=8)
DRAFTED = torch.tensor([100, 101, 102])
PAIRS = [([1, 2], [3, 4, 5]), ([6], [7, 8]), ([9, 10, 11], [12])]


@pytest.fixture
def loss_module(target_folder: Path) -> DistillationLoss:
    learner = build_learner(SIZES, find_checkpoint(str(target_folder)), seed=0)
    return DistillationLoss(learner, Objective("forward_kl", 0.0), 272, DRAFTED)


@pytest.fixture
def batch() -> Batch:
    return Texts([text_shard(range(3), PAIRS)], max_tokens=9).batch(range(3))


def test_a_rollout_is_a_beginning_of_the_text_and_words_of_the_drafter(
    loss_module: DistillationLoss, batch: Batch
) -> None:
    texts = [[*prompt, *answer] for prompt, answer in PAIRS]
    kept = set()
    for seed in range(20):
        rolled = roll_out(loss_module, batch, 2, torch.Generator().manual_seed(seed))
        positions = rolled.positions.view(3, 3)
        width = rolled.tokens.shape[1]
        for row, (text, (prompt, answer)) in enumerate(zip(texts, PAIRS, strict=True)):
            end = int(positions[row, 0]) - row * width
            tokens = rolled.tokens[row].tolist()
            assert tokens[: end + 1] == text[: end + 1]
            assert len(prompt) - 1 <= end <= len(prompt) + len(answer) - 2
            assert {*tokens[end + 1 : end + 3]} <= {*DRAFTED.tolist()}
            assert tokens[end + 3 :] == [0] * (width - end - 3)
            assert positions[row].tolist() == list(
                range(int(positions[row, 0]), int(positions[row, 2]) + 1)
            )
            kept.add((row, end))
    assert len(kept) == 3 + 2 + 1, "every position is drawn"


def test_words_are_drawn_from_the_drafters_distribution(
    loss_module: DistillationLoss, batch: Batch
) -> None:
    one = Texts([text_shard([0], [([6], [7])])], max_tokens=9).batch([0])
    (probs,) = loss_module.next_probs(torch.tensor([[6]]), torch.tensor([0])).detach()
    generator = torch.Generator().manual_seed(0)
    drawn = [int(roll_out(loss_module, one, 1, generator).tokens[0, 1]) for _ in range(400)]
    found = torch.tensor([drawn.count(token) / 400 for token in DRAFTED.tolist()])
    torch.testing.assert_close(found, probs, atol=0.08, rtol=0)


def test_a_drafter_is_distilled_on_its_own_words(
    distillation: TrainingRecipe, tmp_path: Path
) -> None:
    (stage,) = distillation.stages
    assert isinstance(stage, DistilStage)
    rolled = replace(stage, probabilities="target", rollout_tokens=2, max_updates=6)
    recipe = replace(distillation, stages=(rolled,))
    folder = train_drafter(recipe, tmp_path, NoReporter())
    assert (folder / "model.safetensors").exists()
    with pytest.raises(InvalidInputError, match='choose probabilities = "target"'):
        check_training_recipe(replace(recipe, stages=(replace(rolled, probabilities="stored"),)))
    weighed = replace(rolled, weights="steps")
    with pytest.raises(InvalidInputError, match="there are no steps"):
        check_training_recipe(replace(recipe, stages=(weighed,)))
