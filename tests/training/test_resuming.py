"""Runs that are killed, disks that are full, files that rot: nothing that was whole is lost."""

import errno
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from treesnake.errors import InvalidInputError, TrainingError
from treesnake.kept_work import Facts
from treesnake.training import checkpoints, trainer
from treesnake.training.checkpoints import checkpoint_folder, newest_checkpoint, write_folder
from treesnake.training.reporting import NoReporter
from treesnake.training.training_recipe import TrainingRecipe
from treesnake.training.training_run import train_drafter

PATIENCE_S = 300


class KillingReporter(NoReporter):
    """Kills the process when so many updates are done."""

    def __init__(self, num_updates: int) -> None:
        self._num_left = num_updates

    def advance(self, amount: int, facts: Mapping[str, float]) -> None:
        self._num_left -= amount
        if self._num_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def train_until_update(recipe: TrainingRecipe, folder: Path) -> None:
    train_drafter(recipe, folder, KillingReporter(5))


def train_until_checkpoint(recipe: TrainingRecipe, folder: Path) -> None:
    """Trains until the second checkpoint is filled, but has no name yet."""
    finish, folders = trainer.finish_folder, []

    def finish_one(folder: Path, made_from: Facts) -> None:
        folders.append(folder)
        if len(folders) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        finish(folder, made_from)

    trainer.finish_folder = finish_one
    train_drafter(recipe, folder, NoReporter())


def last_checkpoint(folder: Path) -> Path:
    return sorted((folder / "distil" / "checkpoints").iterdir())[-1]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path)["state"]
    return {f"{key}.{name}": each for key, row in state.items() for name, each in row.items()}


def assert_same_run(one: Path, other: Path) -> None:
    for file in ("model.safetensors", "optimizer.bin"):
        first, second = tensors(last_checkpoint(one) / file), tensors(last_checkpoint(other) / file)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), file
    weights = "drafter/model.safetensors"
    assert (one / weights).read_bytes() == (other / weights).read_bytes()


@pytest.fixture(scope="module")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference")


@pytest.fixture
def reference(distillation: TrainingRecipe, reference_folder: Path) -> Path:
    """A run that nobody interrupted."""
    if not (reference_folder / "drafter").exists():
        train_drafter(distillation, reference_folder, NoReporter())
    return reference_folder


@pytest.mark.parametrize(
    ("train", "update"), [(train_until_update, 4), (train_until_checkpoint, 2)]
)
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    train: Callable[[TrainingRecipe, Path], None],
    update: int,
    distillation: TrainingRecipe,
    reference: Path,
    tmp_path: Path,
) -> None:
    process = get_context("fork").Process(target=train, args=(distillation, tmp_path))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    assert newest_checkpoint(tmp_path / "distil" / "checkpoints", print) == checkpoint_folder(
        tmp_path / "distil" / "checkpoints", update
    )
    train_drafter(distillation, tmp_path, NoReporter())
    assert_same_run(tmp_path, reference)


def test_a_broken_checkpoint_is_named_and_the_one_before_it_is_taken(
    distillation: TrainingRecipe, reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    newest = last_checkpoint(folder)
    path = newest / "model.safetensors"
    stored = path.read_bytes()
    path.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))
    told = []

    class Listener(NoReporter):
        def tell(self, message: str) -> None:
            told.append(message)

    train_drafter(distillation, folder, Listener())
    assert any(f"the checkpoint {newest} is broken: {path} has changed" in each for each in told)
    assert_same_run(folder, reference)


def test_when_all_checkpoints_are_broken_it_says_so(
    distillation: TrainingRecipe, reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    for path in (folder / "distil" / "checkpoints").glob("*/optimizer.bin"):
        path.unlink()
    with pytest.raises(TrainingError, match="no other is left"):
        train_drafter(distillation, folder, NoReporter())


def test_another_recipe_does_not_go_on_with_these_checkpoints(
    distillation: TrainingRecipe, reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    with pytest.raises(InvalidInputError, match=r"seed: 0 then, 1 now"):
        train_drafter(replace(distillation, seed=1), folder, NoReporter())


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    write_folder(folder, lambda partial: write(partial / "weights", "old"), {})

    def fill(partial: Path) -> None:
        write(partial / "weights", "new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TrainingError, match="No space left on device; what was written before"):
        write_folder(folder, fill, {})
    assert (folder / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_full_disk_in_the_middle_of_a_run_leaves_its_last_checkpoint(
    distillation: TrainingRecipe, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    original = checkpoints.sha256_of_file
    monkeypatch.setattr(
        checkpoints,
        "sha256_of_file",
        lambda path: full(path) if "00004" in str(path) else original(path),
    )
    with pytest.raises(
        TrainingError, match="make room on that disk and run the same command again"
    ):
        train_drafter(distillation, tmp_path, NoReporter())
    assert last_checkpoint(tmp_path).name == "update-00000002"
    monkeypatch.undo()
    train_drafter(distillation, tmp_path, NoReporter())
    assert_same_run(tmp_path, reference)


def test_a_loss_that_is_no_number_stops_and_says_what_to_try(
    distillation: TrainingRecipe, tmp_path: Path
) -> None:
    (stage,) = distillation.stages
    wild = replace(stage, learning_rate=1e30, warmup=0.0, clip_norm=1e30)
    with pytest.raises(TrainingError, match=r"Try a learning_rate of 3.3e\+29"):
        train_drafter(replace(distillation, stages=(wild,)), tmp_path, NoReporter())


def test_a_run_goes_on_with_another_learning_rate(
    distillation: TrainingRecipe, reference: Path, tmp_path: Path
) -> None:
    (stage,) = distillation.stages
    early = replace(stage, max_updates=4)
    train_drafter(replace(distillation, stages=(early,)), tmp_path, NoReporter())
    slower = replace(stage, learning_rate=1e-3)
    folder = train_drafter(replace(distillation, stages=(slower,)), tmp_path, NoReporter())
    assert last_checkpoint(tmp_path).name == last_checkpoint(reference).name
    assert (folder / "model.safetensors").exists()


def write(path: Path, text: str) -> None:
    path.write_text(text)
