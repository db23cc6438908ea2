"""Several processes learn what one does."""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_

from treesnake.loading.checkpoint import find_checkpoint
from treesnake.training.devices import keep_memory, new_accelerator, rounded_products
from treesnake.training.distillation_loss import DistillationLoss, Objective
from treesnake.training.learner import build_learner
from treesnake.training.reporting import NoReporter
from treesnake.training.texts import Batch, read_texts
from treesnake.training.training_recipe import DistilStage, TrainingRecipe
from treesnake.training.training_run import train_drafter

PATIENCE_S = 300
"""A process that hangs fails the test, instead of holding up all others."""

Run = Callable[[TrainingRecipe, Path], None]


def run_as(
    rank: int, environment: dict[str, str], run: Run, recipe: TrainingRecipe, folder: Path
) -> None:
    """Is what `accelerate launch` starts so many times."""
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    run(recipe, folder)


def run_together(run: Run, recipe: TrainingRecipe, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    context = get_context("fork")
    processes = [
        context.Process(target=run_as, args=(rank, environment, run, recipe, folder))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


def test_products_are_rounded_on_a_cpu_that_was_asked_to_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    before = torch.get_float32_matmul_precision()
    for precision, within in (("auto", before), ("float32", before), ("bfloat16", "medium")):
        with rounded_products(precision):
            assert torch.get_float32_matmul_precision() == within
        assert torch.get_float32_matmul_precision() == before


def train(recipe: TrainingRecipe, folder: Path) -> None:
    train_drafter(recipe, folder, NoReporter())


def curve(folder: Path) -> list[dict[str, Any]]:
    provenance = json.loads((folder / "drafter" / "provenance.json").read_text())
    return provenance["stages"][0]["evaluations"]


def assert_same_curve(one: Path, other: Path) -> None:
    for first, second in zip(curve(one), curve(other), strict=True):
        assert first["num_tokens"] == second["num_tokens"]
        assert first["training_loss"] == pytest.approx(second["training_loss"], rel=1e-4)
        assert first["judgement"]["loss"] == pytest.approx(second["judgement"]["loss"], rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_have_the_loss_curve_of_one(
    optimizer: Literal["adamw", "muon"], distillation: TrainingRecipe, tmp_path: Path
) -> None:
    (stage,) = distillation.stages
    assert isinstance(stage, DistilStage)
    distillation = replace(distillation, stages=(replace(stage, optimizer=optimizer),))
    train(distillation, tmp_path / "one")
    run_together(train, distillation, tmp_path / "two")
    assert_same_curve(tmp_path / "one", tmp_path / "two")
    weights = [load_file(tmp_path / name / "drafter/model.safetensors") for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-2, atol=1e-3)


def test_two_processes_answer_the_prompts_together(recipe: TrainingRecipe, tmp_path: Path) -> None:
    answers = replace(recipe, stages=recipe.stages[:1])
    train(answers, tmp_path / "one")
    run_together(train, answers, tmp_path / "two")
    files = sorted((tmp_path / "one" / "answers").iterdir())
    assert len(files) > 2
    for path in files:
        assert path.read_bytes() == (tmp_path / "two" / "answers" / path.name).read_bytes()


def lose_sharded(recipe: TrainingRecipe, folder: Path) -> None:
    """Writes the norm of a gradient whose weights are shared out to two processes."""
    loss_module, batch = new_loss_module(recipe)
    accelerator = new_accelerator("float32")
    fully_shard(loss_module, mesh=init_device_mesh("cpu", (2,)))
    loss = loss_module(batch)[:, 0].sum()
    loss.backward()
    norm = clip_grad_norm_(loss_module.parameters(), 1e9)
    assert isinstance(norm, DTensor)
    norm = norm.full_tensor()
    if accelerator.is_main_process:
        torch.save((loss.detach(), norm), folder / "sharded.pt")


def new_loss_module(recipe: TrainingRecipe) -> tuple[DistillationLoss, Batch]:
    (stage,) = recipe.stages
    assert isinstance(stage, DistilStage)
    target = find_checkpoint(recipe.target)
    learner = build_learner(recipe.drafter, target, recipe.seed)
    texts = read_texts([Path(stage.data[0])], stage.max_tokens, 70000)
    loss_module = DistillationLoss(learner, Objective("forward_kl", 0.5), 272, None)
    return loss_module, texts.batch(range(8))


def test_weights_can_be_shared_out_as_fsdp_does(
    distillation: TrainingRecipe, tmp_path: Path
) -> None:
    run_together(lose_sharded, distillation, tmp_path)
    sharded_loss, sharded_norm = torch.load(tmp_path / "sharded.pt")
    loss_module, batch = new_loss_module(distillation)
    loss = loss_module(batch)[:, 0].sum()
    loss.backward()
    torch.testing.assert_close(sharded_loss, loss.detach())
    torch.testing.assert_close(sharded_norm, clip_grad_norm_(loss_module.parameters(), 1e9))


def test_memory_that_was_freed_is_used_again_without_the_system(tmp_path: Path) -> None:
    """Pages that the system hands out anew are counted as faults: of ten tensors, those of two."""
    resource = pytest.importorskip("resource")

    def count_faults(file: Path) -> None:
        if not keep_memory():
            return
        torch.ones(2**24)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(2**24)
        file.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))

    file = tmp_path / "faults"
    process = get_context("fork").Process(target=count_faults, args=(file,))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    if not file.exists():
        pytest.skip("the allocator is not glibc's")
    assert int(file.read_text()) < 2 * 2**24 * 4 / resource.getpagesize()
