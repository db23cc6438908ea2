"""Door: what a training leaves behind, gone on with."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from fuzzing import models
from fuzzing.cases import Case, Opened
from fuzzing.command_line import run_command
from fuzzing.mutations import mutate_bytes, mutate_file, mutate_json
from fuzzing.safetensors_files import mutate_safetensors
from fuzzing.toml_files import to_toml
from treesnake.training.reporting import NoReporter
from treesnake.training.training_recipe import read_training_recipe
from treesnake.training.training_run import train_drafter

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "target": "the-target",
    "target_dtype": "float32",
    "draft_vocabulary": 96,
    "stored_dtype": "float32",
    "drafter": {
        "kind": "mamba2",
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "head_dim": 16,
        "state_dim": 8,
    },
    "stages": [
        {
            "kind": "answers",
            "name": "answers",
            "prompts": ["prompts.jsonl"],
            "max_new_tokens": 8,
            "num_top": 4,
            "batch_size": 16,
        },
        {
            "kind": "distil",
            "name": "distil",
            "data": ["answers"],
            "batch_tokens": 200,
            "pass_tokens": 200,
            "epochs": 2,
            "max_updates": 6,
            "learning_rate": 1e-2,
            "held_out": 0.2,
            "evaluate_every": 2,
            "checkpoint_every": 2,
        },
    ],
}
NUM_PROMPTS = 40
KILLED_AT = 5
RUN = Path("runs") / "tiny"
OUTPUT = "drafter"


class Trainings:
    """A finished training, one that was killed, and one that has its answers only."""

    specimens: Sequence[str] = ("finished", "killed", "answered")

    def prepare(self, folder: Path) -> None:
        models.save_model("llama", folder / "the-target")
        (folder / "recipe.toml").write_bytes(to_toml(RECIPE))
        prompts = ({"prompt": f"{index * 37 % 101} and {index}"} for index in range(NUM_PROMPTS))
        (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
        for specimen, num_updates in (("killed", KILLED_AT), ("finished", None)):
            child = os.fork()
            if child == 0:
                _train(folder, folder / specimen, num_updates)
            os.waitpid(child, 0)
        shutil.copytree(folder / "killed", folder / "answered")
        shutil.rmtree(folder / "answered" / "tiny" / "distil")
        (folder / "meant.json").write_text(json.dumps(_drafter(folder / "finished" / "tiny")))

    def case(
        self, specimens: Path, specimen: str, work: Path, random: Random, num_mutations: int
    ) -> Case:
        for name in ("the-target", "recipe.toml", "prompts.jsonl"):
            (work / name).symlink_to(specimens / name)
        runs = work / "runs"
        shutil.copytree(specimens / specimen, runs)
        done = tuple(_mutate(runs / "tiny", random) for _ in range(num_mutations))
        meant = json.loads((specimens / "meant.json").read_text())
        return Case(specimen, done, runs, partial(_resume, runs), lambda: meant, _differ)


class _KillingReporter(NoReporter):
    """Kills the process when so many updates are done."""

    def __init__(self, num_updates: int | None) -> None:
        self._num_updates = num_updates
        self._is_learning = False

    def begin(self, stage: str, done: int, total: int | None) -> None:
        self._is_learning = stage == "distil"
        self._num_done = 0

    def advance(self, amount: int, facts: Mapping[str, float]) -> None:
        self._num_done += amount
        if self._is_learning and self._num_done == self._num_updates:
            os.kill(os.getpid(), signal.SIGKILL)


def _train(folder: Path, runs: Path, num_updates: int | None) -> None:
    """Trains in this process, which ends here; clocks tick evenly, so the bytes are the same."""
    os.chdir(folder)
    ticks = itertools.count()
    time.monotonic = lambda: next(ticks) / 4
    torch.manual_seed(0)
    try:
        recipe = read_training_recipe(folder / "recipe.toml")
        train_drafter(recipe, runs / recipe.name, _KillingReporter(num_updates))
    except BaseException as error:  # noqa: BLE001 - the process must not run on
        traceback.print_exception(error)
    os._exit(0)


def _mutate(run: Path, random: Random) -> str:
    """Changes a file of a run, but for its output, which is made anew."""
    files = sorted(
        path
        for path in run.rglob("*")
        if (path.is_file() or path.is_symlink()) and OUTPUT not in path.parts
    )
    path = random.choice(files)
    place = path.parent.relative_to(run)
    if random.random() < 0.05 and path.parent != run:
        shutil.rmtree(path.parent)
        return f"{place}: missing"
    kinds = {".safetensors": mutate_safetensors, ".json": mutate_json}
    return f"{place}/{mutate_file(path, random, kinds.get(path.suffix, mutate_bytes))}"


def _resume(runs: Path) -> Opened:
    run_command("train", "recipe.toml", "-o", "runs")
    return _drafter(runs / "tiny")


def _drafter(run: Path) -> dict[str, str]:
    """Returns the checksums of what a training makes."""
    names = ("model.safetensors", "config.json", "draft_vocabulary.json", "tokenizer.json")
    return {
        name: hashlib.sha256((run / OUTPUT / name).read_bytes()).hexdigest()[:16] for name in names
    }


def _differ(opened: Mapping[str, str], meant: Mapping[str, str]) -> str | None:
    others = [name for name in meant if opened[name] != meant[name]]
    return (
        f"{', '.join(others)} of the drafter differ from those of a whole run" if others else None
    )
