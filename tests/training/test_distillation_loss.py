"""What one forward pass of training returns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from treesnake.errors import InvalidInputError
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.training import distillation_loss
from treesnake.training.distillation_loss import DistillationLoss, LossTerms, Objective
from treesnake.training.learner import Learner, build_learner
from treesnake.training.reporting import NoReporter
from treesnake.training.shards import text_shard
from treesnake.training.texts import Batch, Texts
from treesnake.training.training_recipe import (
    CorpusStage,
    DistilStage,
    Mamba2Sizes,
    PretrainStage,
    TrainingRecipe,
)
from treesnake.training.training_run import train_drafter

SIZES = Mamba2Sizes(hidden_size=32, num_layers=1, num_heads=4, head_dim=16, state_dim=8)
VOCAB_SIZE = 272


@pytest.fixture
def learner(target_folder: Path) -> Learner:
    return build_learner(SIZES, find_checkpoint(str(target_folder)), seed=0)


@pytest.fixture
def batch() -> Batch:
    pairs = [([1, 2], [3, 4, 5]), ([6], [7, 8])]
    return Texts([text_shard([0, 1], pairs)], max_tokens=9).batch([0, 1])


def test_marks_are_those_of_the_networks_logits(learner: Learner, batch: Batch) -> None:
    terms = LossTerms.of(DistillationLoss(learner, Objective(None, 1.0), VOCAB_SIZE, None)(batch))
    logits = learner.network(batch.tokens).flatten(0, 1)[batch.positions]
    probs = logits.softmax(-1)
    chosen = probs.gather(-1, batch.labels[:, None])[:, 0]
    torch.testing.assert_close(terms.loss, -chosen.log())
    torch.testing.assert_close(terms.confidence, probs.max(-1).values)
    assert terms.is_right.tolist() == (probs.argmax(-1) == batch.labels).float().tolist()


def test_what_is_filled_up_changes_nothing(learner: Learner, batch: Batch) -> None:
    loss_module = DistillationLoss(learner, Objective(None, 1.0), VOCAB_SIZE, None)
    alone = Texts([text_shard([0], [([6], [7, 8])])], max_tokens=9).batch([0])
    torch.testing.assert_close(loss_module(batch)[3:], loss_module(alone))


def test_parts_add_up_to_the_same_gradient(
    learner: Learner, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = []
    for positions in (2, 100):
        monkeypatch.setattr(distillation_loss, "POSITIONS_PER_PART", positions)
        loss_module = DistillationLoss(
            learner, Objective(None, 1.0), VOCAB_SIZE, torch.arange(1, 9)
        )
        learner.zero_grad()
        loss_module(batch)[:, 0].sum().backward()
        assert learner.embeddings.grad is not None
        gradients.append(learner.embeddings.grad.clone())
    torch.testing.assert_close(*gradients)


def test_a_draft_vocabulary_limits_what_is_said(learner: Learner, batch: Batch) -> None:
    loss_module = DistillationLoss(learner, Objective(None, 1.0), VOCAB_SIZE, torch.tensor([3, 7]))
    terms = LossTerms.of(loss_module(batch))
    assert (terms.confidence >= 0.5).all(), "one of two tokens"
    assert terms.loss[[1, 2, 4]].tolist() == [0, 0, 0], "4, 5 and 8 cannot be said"
    assert terms.is_right[[1, 2, 4]].tolist() == [0, 0, 0]


def test_a_batch_of_no_places_has_a_gradient_of_zeros(learner: Learner, batch: Batch) -> None:
    loss_module = DistillationLoss(learner, Objective(None, 1.0), VOCAB_SIZE, None)
    loss_module(batch.without_positions())[:, 0].sum().backward()
    gradients = [parameter.grad for parameter in learner.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_the_target_can_run_along_on_any_text(
    distillation: TrainingRecipe, answers_folder: Path, tmp_path: Path
) -> None:
    """Of answers whose probabilities are all stored both ways are the same."""
    (stage,) = distillation.stages
    assert isinstance(stage, DistilStage)
    short = replace(stage, max_updates=2, evaluate_every=2)
    folders = []
    for probabilities in ("stored", "target"):
        stages = (replace(short, probabilities=probabilities),)
        recipe = replace(distillation, draft_vocabulary=None, stages=stages)
        folders.append(train_drafter(recipe, tmp_path / probabilities, NoReporter()))
    stored, along = (load_file(folder / "model.safetensors") for folder in folders)
    for name, tensor in stored.items():
        assert torch.allclose(tensor, along[name], atol=0.05), "much of the mass is stored"
    assert not all(torch.equal(tensor, along[name]) for name, tensor in stored.items())


def test_text_without_the_targets_probabilities_cannot_be_distilled_from_them(
    distillation: TrainingRecipe, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "some text"}\n' * 20)
    recipe = replace(
        distillation,
        draft_vocabulary=None,
        stages=(
            CorpusStage(name="corpus", source=str(corpus), content="text", column="text"),
            DistilStage(name="distil", data=("corpus",), held_out=0.5),
        ),
    )
    with pytest.raises(InvalidInputError, match="has no probabilities of the target"):
        train_drafter(recipe, tmp_path / "run", NoReporter())


def test_pretraining_comes_before_distillation(
    distillation: TrainingRecipe, answers_folder: Path, tmp_path: Path
) -> None:
    (stage,) = distillation.stages
    pretrain = PretrainStage(
        name="pretrain",
        data=(str(answers_folder),),
        batch_tokens=300,
        pass_tokens=200,
        max_updates=2,
        learning_rate=1e-2,
        held_out=0.15,
    )
    frozen = replace(stage, max_updates=1, learning_rate=1e-9)
    recipe = replace(distillation, draft_vocabulary=None, stages=(pretrain, frozen))
    folder = train_drafter(recipe, tmp_path, NoReporter())
    found = load_file(folder / "model.safetensors")
    best = load_file(tmp_path / "pretrain" / "best" / "weights.safetensors")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, best[f"network.{name}"], atol=1e-6, rtol=0)
