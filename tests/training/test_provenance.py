"""A drafter carries along where it comes from."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from treesnake.environment import SourceCommit
from treesnake.training import provenance
from treesnake.training.held_out import HeldOutScore
from treesnake.training.progress import Evaluation
from treesnake.training.provenance import StageRecord, write_provenance
from treesnake.training.training_recipe import TrainingRecipe

EVALUATION = Evaluation(4, 1000, 7.5, 2.0, HeldOutScore(3, 30, 2.1, 0.5, 1.9, 0.1, ()))
RECORD = StageRecord("distil", 80, 900, 1000, 0.002, [EVALUATION])
LEFT_OUT = {"web": [{"reason": "without text", "rows": 1, "first": [3]}]}


def test_recipe_sources_and_curves_are_written(recipe: TrainingRecipe, tmp_path: Path) -> None:
    write_provenance(
        tmp_path, recipe, [RECORD], num_parameters=123, num_processes=2, left_out=LEFT_OUT
    )
    facts = json.loads((tmp_path / "provenance.json").read_text())
    assert facts["recipe"] == json.loads(json.dumps(asdict(recipe)))
    assert facts["left_out"] == LEFT_OUT
    assert facts["sources"]["answers"]["answered_by"] == recipe.target
    assert facts["stages"][0]["evaluations"][0]["judgement"]["tokens_per_step"] == 1.9
    assert (facts["parameters"], facts["processes"]) == (123, 2)
    assert facts["packages"]["torch"]


@pytest.mark.parametrize(
    ("commit", "written"),
    [
        (SourceCommit("a1" * 20, is_changed=False), "a1" * 20),
        (SourceCommit("a1" * 20, is_changed=True), "a1" * 20 + "-dirty"),
        (None, None),
    ],
)
def test_the_commit_is_marked_if_the_source_was_changed(
    commit: SourceCommit | None,
    written: str | None,
    recipe: TrainingRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(provenance, "source_commit", lambda: commit)
    write_provenance(
        tmp_path, recipe, [RECORD], num_parameters=123, num_processes=2, left_out=LEFT_OUT
    )
    assert json.loads((tmp_path / "provenance.json").read_text())["commit"] == written
