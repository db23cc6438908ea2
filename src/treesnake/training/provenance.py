"""Where a drafter comes from: a file beside its weights that says all that made them."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from treesnake.environment import SourceCommit, package_versions, source_commit
from treesnake.training.learner import locate_trained
from treesnake.training.progress import Evaluation
from treesnake.training.training_recipe import TrainedBefore, TrainingRecipe

PROVENANCE_FILE = "provenance.json"

PACKAGES = ("treesnake", "torch", "transformers", "accelerate", "datasets")


@dataclass(frozen=True)
class StageRecord:
    """What a learning stage did.

    Attributes:
        name: of the stage.
        num_texts: that it could learn from, those held out included.
        num_answer_tokens: of them that are learned or judged.
        num_tokens_run: prompts and every epoch included.
        hours: that training took.
        evaluations: the curve of loss and acceptance.
    """

    name: str
    num_texts: int
    num_answer_tokens: int
    num_tokens_run: int
    hours: float
    evaluations: Sequence[Evaluation]


def write_provenance(
    folder: Path,
    recipe: TrainingRecipe,
    records: Sequence[StageRecord],
    num_parameters: int,
    num_processes: int,
    left_out: Mapping[str, Any],
) -> None:
    """Writes the file into a drafter's folder.

    Args:
        folder: of the drafter.
        recipe: what was made.
        records: of its learning stages.
        num_parameters: of the drafter.
        num_processes: that trained it.
        left_out: by the name of a corpus, the rows of its source that were left out.
    """
    facts = {
        "recipe": asdict(recipe),
        "trained_before": _trained_before(recipe),
        "commit": _marked(source_commit()),
        "packages": package_versions(PACKAGES),
        "python": platform.python_version(),
        "device": _device(),
        "processes": num_processes,
        "parameters": num_parameters,
        "sources": _sources(recipe),
        "left_out": left_out,
        "stages": [asdict(record) for record in records],
    }
    (folder / PROVENANCE_FILE).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def _sources(recipe: TrainingRecipe) -> Mapping[str, Any]:
    """Returns where the data of each stage came from."""
    sources: dict[str, Any] = {}
    for stage in recipe.stages:
        if stage.kind == "corpus":
            sources[stage.name] = stage.source
        elif stage.kind == "answers":
            answered_by = stage.answered_by or recipe.target
            sources[stage.name] = {"answered_by": answered_by, "prompts": stage.prompts}
        else:
            sources[stage.name] = stage.data
    return sources


def _trained_before(recipe: TrainingRecipe) -> Any:
    """Returns the provenance of a drafter that goes on learning, if it has one."""
    if not isinstance(recipe.drafter, TrainedBefore):
        return None
    try:
        return json.loads((locate_trained(recipe.drafter) / PROVENANCE_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {platform.machine()}, {torch.get_num_threads()} threads"


def _marked(commit: SourceCommit | None) -> str | None:
    """Returns the commit of the source that runs, marked if the source was changed since."""
    return None if commit is None else commit.hash + "-dirty" * commit.is_changed
