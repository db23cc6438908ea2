"""A recipe from prompts to a drafter that drafts."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from treesnake.chance import TorchRng
from treesnake.cli.app import app
from treesnake.drafters.load import load_drafter
from treesnake.errors import InvalidInputError, TrainingError
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.options import LoadOptions
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.shape import chain
from treesnake.training import answers as answers_module
from treesnake.training.learner import locate_trained
from treesnake.training.reporting import NoReporter
from treesnake.training.shards import read_shard, shard_files
from treesnake.training.trainer import Trainer
from treesnake.training.training_recipe import (
    AnswersStage,
    DistilStage,
    MambaSizes,
    Start,
    TrainedBefore,
    TrainingRecipe,
    TransformerSizes,
)
from treesnake.training.training_run import train_drafter


@pytest.mark.parametrize(
    "sizes",
    [
        None,
        MambaSizes(hidden_size=32, num_layers=2, state_dim=4),
        TransformerSizes(
            hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48
        ),
    ],
    ids=["mamba2", "mamba", "transformer"],
)
def test_a_recipe_makes_a_drafter_of_any_architecture(
    recipe: TrainingRecipe,
    sizes: MambaSizes | TransformerSizes | None,
    tmp_path: Path,
    target_folder: Path,
) -> None:
    if sizes is not None:
        recipe = replace(recipe, drafter=sizes)
    folder = train_drafter(recipe, tmp_path, NoReporter())
    drafter = load_drafter(
        str(folder),
        LoadOptions(dtype="float32", device="cpu"),
        target=find_checkpoint(str(target_folder)),
    )
    session = drafter.new_session()
    session.prefill(Prompt((5, 6, 7)))
    draft = session.draft(7, chain(3), SamplingParams(), TorchRng(0))
    assert len(draft.tree) == 4
    drafted = json.loads((folder / "draft_vocabulary.json").read_text())
    assert {*draft.tree.tokens[1:]} <= {*drafted}
    provenance = json.loads((folder / "provenance.json").read_text())
    (stage,) = provenance["stages"]
    assert stage["evaluations"][-1]["update"] == 9
    first, last = stage["evaluations"][0], stage["evaluations"][-1]
    assert last["judgement"]["loss"] < first["judgement"]["loss"]


def test_a_drafter_goes_on_learning_with_all_that_it_had(
    distillation: TrainingRecipe, tmp_path: Path
) -> None:
    """Its vocabulary, its target's embeddings, and how much of a prompt it reads."""
    start = Start(embeddings="target", frozen=("embeddings",))
    first = train_drafter(replace(distillation, start=start), tmp_path / "first", NoReporter())
    config = json.loads((first / "config.json").read_text())
    assert "prompt_window" not in config
    (first / "config.json").write_text(json.dumps(config | {"prompt_window": 8}))
    source = TrainedBefore(source=str(first))
    more = replace(distillation, start=start, drafter=source, draft_vocabulary=None)
    second = train_drafter(more, tmp_path / "second", NoReporter())
    before, after = (
        json.loads((folder / "provenance.json").read_text()) for folder in (first, second)
    )
    assert before["trained_before"] is None
    assert after["trained_before"] == before
    losses = [each["stages"][0]["evaluations"][-1]["judgement"]["loss"] for each in (before, after)]
    assert losses[1] < losses[0]
    assert "backbone.embeddings.weight" not in load_file(second / "model.safetensors")
    vocabularies = [(each / "draft_vocabulary.json").read_text() for each in (first, second)]
    assert vocabularies[0] == vocabularies[1]
    assert json.loads((second / "config.json").read_text()) == config | {"prompt_window": 8}


def test_the_command_runs_a_recipe_and_names_the_drafter(
    distillation: TrainingRecipe,
    tmp_path: Path,
    write_recipe: Callable[[TrainingRecipe, Path], Path],
) -> None:
    path = write_recipe(distillation, tmp_path / "recipe.toml")
    result = CliRunner().invoke(app, ["train", str(path), "-o", str(tmp_path / "runs")])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "runs" / "tiny" / "drafter")
    assert "tokens/step" in result.stderr
    again = CliRunner().invoke(app, ["train", str(path), "-o", str(tmp_path / "runs")])
    assert again.stdout == result.stdout
    assert "update 4" not in again.stderr, "nothing is done twice"


def test_stages_that_were_made_with_other_settings_are_not_taken(
    recipe: TrainingRecipe, tmp_path: Path
) -> None:
    (answers, _) = recipe.stages
    assert isinstance(answers, AnswersStage)
    train_drafter(replace(recipe, stages=(answers,)), tmp_path, NoReporter())
    other = replace(answers, max_new_tokens=3)
    with pytest.raises(InvalidInputError, match=r"max_new_tokens: 12 then, 3 now"):
        train_drafter(replace(recipe, stages=(other,)), tmp_path, NoReporter())


def test_the_answers_of_other_models_are_learned_beside_the_targets_own(
    recipe: TrainingRecipe, target_folder: Path, tmp_path: Path
) -> None:
    answers, distil = recipe.stages
    assert isinstance(answers, AnswersStage)
    assert isinstance(distil, DistilStage)
    others = replace(answers, name="others", answered_by=str(target_folder), temperature=1.0)
    both = replace(distil, data=("answers", "others"), max_updates=2)
    folder = train_drafter(replace(recipe, stages=(answers, others, both)), tmp_path, NoReporter())
    shards = [read_shard(path) for path in shard_files(tmp_path / "others")]
    assert all(shard.top_ids is None for shard in shards)
    sources = json.loads((folder / "provenance.json").read_text())["sources"]
    assert sources["others"]["answered_by"] == str(target_folder)
    only = replace(both, data=("others",))
    with pytest.raises(InvalidInputError, match="has no probabilities of the target"):
        train_drafter(replace(recipe, stages=(others, only)), tmp_path / "only", NoReporter())


def test_a_drafter_learns_to_be_accepted(distillation: TrainingRecipe, tmp_path: Path) -> None:
    (stage,) = distillation.stages
    assert isinstance(stage, DistilStage)
    accepted = replace(stage, divergence="rejection", cross_entropy_weight=0.0, weights="steps")
    folder = train_drafter(replace(distillation, stages=(accepted,)), tmp_path, NoReporter())
    (record,) = json.loads((folder / "provenance.json").read_text())["stages"]
    first, last = (record["evaluations"][end]["judgement"] for end in (0, -1))
    assert last["loss"] < first["loss"]
    assert [chains["temperature"] for chains in last["chains"]] == [0.0]


def test_a_drafter_of_the_package_can_go_on_learning() -> None:
    found = locate_trained(TrainedBefore(source="treesnake-smol"))
    assert (found / "draft_vocabulary.json").is_file()


def test_a_drafter_that_nothing_judges_is_not_trained(
    distillation: TrainingRecipe, tmp_path: Path
) -> None:
    (stage,) = distillation.stages
    assert isinstance(stage, DistilStage)
    none_held_out = replace(distillation, stages=(replace(stage, held_out=0.0),))
    with pytest.raises(InvalidInputError, match="0 that are held out; add data"):
        train_drafter(none_held_out, tmp_path, NoReporter())


def test_short_memory_names_the_setting_that_saves_it(
    recipe: TrainingRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*_arguments: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Trainer, "_update", exhaust)
    with pytest.raises(TrainingError, match="choose a smaller pass_tokens"):
        train_drafter(recipe, tmp_path / "learning", NoReporter())
    monkeypatch.setattr(answers_module, "answer", exhaust)
    with pytest.raises(TrainingError, match="choose a smaller batch_size"):
        train_drafter(recipe, tmp_path / "answering", NoReporter())


def test_a_drafter_that_no_memory_holds_is_told_before_it_is_built(
    distillation: TrainingRecipe, tmp_path: Path
) -> None:
    huge = MambaSizes(hidden_size=2**20, num_layers=2**20)
    with pytest.raises(InvalidInputError, match="GB are free; choose a smaller one"):
        train_drafter(replace(distillation, drafter=huge), tmp_path, NoReporter())


def test_heads_that_cannot_be_rotated_are_told(
    distillation: TrainingRecipe, tmp_path: Path
) -> None:
    odd = TransformerSizes(
        hidden_size=9, num_layers=1, num_heads=3, num_kv_heads=3, intermediate_size=8
    )
    with pytest.raises(InvalidInputError, match="a head of 3 channels"):
        train_drafter(replace(distillation, drafter=odd), tmp_path, NoReporter())
