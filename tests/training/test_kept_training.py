"""What a run kept is used by the next one only if it was made from the same, and is whole."""

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from treesnake import files
from treesnake.errors import InvalidInputError, TrainingError
from treesnake.kept_work import alone
from treesnake.training.checkpoints import write_folder
from treesnake.training.reporting import NoReporter
from treesnake.training.shards import shard_files
from treesnake.training.trainer import JUDGEMENT_FILE, WEIGHTS_FILE
from treesnake.training.training_recipe import (
    AnswersStage,
    CorpusStage,
    DistilStage,
    PretrainStage,
    TrainingRecipe,
)
from treesnake.training.training_run import train_drafter

PATIENCE_S = 300


class Listener(NoReporter):
    """Keeps what it is told, and does something when so much has been done."""

    def __init__(self, countdown: int = 0, act: Callable[[], None] | None = None) -> None:
        self.told: list[str] = []
        self._left = countdown
        self._act = act

    def tell(self, message: str) -> None:
        self.told.append(message)

    def advance(self, amount: int, facts: Mapping[str, float]) -> None:
        self._left -= amount
        if self._left <= 0 and self._act is not None:
            self._act()


@pytest.fixture
def texts_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"{index * 37 % 101} and {index} " * 2} for index in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pretraining(recipe: TrainingRecipe, texts_file: Path) -> TrainingRecipe:
    """A corpus of three shards, and two updates on it."""
    stages = (
        CorpusStage(
            name="web", source=str(texts_file), content="text", column="text", max_tokens=64
        ),
        PretrainStage(
            name="pretrain",
            data=("web",),
            batch_tokens=600,
            pass_tokens=400,
            epochs=4,
            max_updates=4,
            held_out=0.2,
            evaluate_every=1,
            checkpoint_every=2,
        ),
    )
    return replace(recipe, stages=stages, draft_vocabulary=None)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treesnake.training.corpus.TOKENS_PER_SHARD", 600)


@pytest.fixture
def answering(recipe: TrainingRecipe) -> TrainingRecipe:
    stage = recipe.stages[0]
    assert isinstance(stage, AnswersStage)
    return replace(recipe, stages=(replace(stage, max_new_tokens=2),))


def drafter_files(folder: Path) -> dict[str, bytes]:
    """Returns all that a drafter's folder holds, but for what tells hours and digests."""
    left_out = ("provenance.json", "record.json")
    return {
        p.name: p.read_bytes() for p in (folder / "drafter").iterdir() if p.name not in left_out
    }


def damage_nothing(_folder: Path) -> None:
    pass


def lose_first_shard(folder: Path) -> None:
    shard_files(folder / "web")[0].unlink()


def cut_second_shard(folder: Path) -> None:
    os.truncate(shard_files(folder / "web")[1], 100)


def change_last_shard(folder: Path) -> None:
    path = shard_files(folder / "web")[-1]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def lose_corpus(folder: Path) -> None:
    shutil.rmtree(folder / "web")


def tear_done_mark(folder: Path) -> None:
    (folder / "web.done.json").write_text("")


def halve_done_mark(folder: Path) -> None:
    path = folder / "web.done.json"
    os.truncate(path, path.stat().st_size // 2)


def lose_record(folder: Path) -> None:
    (folder / "web" / "made_from.json").unlink()


def lose_digests(folder: Path) -> None:
    (folder / "digests.json").write_text("[]")


def lose_best(folder: Path) -> None:
    shutil.rmtree(folder / "pretrain" / "best")


def change_best(folder: Path) -> None:
    path = folder / "pretrain" / "best" / WEIGHTS_FILE
    weights = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save_file(weights, path)


def abandon_best(folder: Path) -> None:
    """Leaves a best drafter that is whole, and of a course that no checkpoint continues."""
    best = folder / "pretrain" / "best"
    weights = {name: tensor + 1 for name, tensor in load_file(best / WEIGHTS_FILE).items()}

    def fill(partial: Path) -> None:
        save_file(weights, partial / WEIGHTS_FILE)
        (partial / JUDGEMENT_FILE).write_text("{}")

    write_folder(best, fill, {})


def lose_drafter(folder: Path) -> None:
    shutil.rmtree(folder / "drafter")


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing,
        lose_first_shard,
        cut_second_shard,
        change_last_shard,
        lose_corpus,
        tear_done_mark,
        halve_done_mark,
        lose_record,
        lose_digests,
        lose_best,
        change_best,
        abandon_best,
        lose_drafter,
    ],
)
def test_what_is_lost_is_made_anew_and_the_drafter_is_the_same(
    damage: Callable[[Path], None], pretraining: TrainingRecipe, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train_drafter(pretraining, folder, NoReporter())
    wanted, num_shards = drafter_files(folder), len(shard_files(folder / "web"))
    assert num_shards > 2
    damage(folder)
    train_drafter(pretraining, folder, NoReporter())
    assert drafter_files(folder) == wanted
    assert len(shard_files(folder / "web")) == num_shards


def test_a_drafter_is_the_one_that_its_provenance_judges_best(
    pretraining: TrainingRecipe, tmp_path: Path
) -> None:
    corpus, pretrain = pretraining.stages
    assert isinstance(pretrain, PretrainStage)
    wild = replace(pretrain, checkpoint_every=100, max_updates=8, learning_rate=3e-2)
    process = get_context("fork").Process(
        target=_train_and_die, args=(replace(pretraining, stages=(corpus, wild)), tmp_path)
    )
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "pretrain" / "best").exists()
    calm = replace(pretrain, learning_rate=1e-5)
    train_drafter(replace(pretraining, stages=(corpus, calm)), tmp_path, NoReporter())
    provenance = json.loads((tmp_path / "drafter" / "provenance.json").read_text())
    judged = [each["judgement"] for each in provenance["stages"][0]["evaluations"]]
    best = max(judged, key=lambda judgement: judgement["tokens_per_step"])
    assert json.loads((tmp_path / "pretrain" / "best" / JUDGEMENT_FILE).read_text()) == best


def _train_and_die(recipe: TrainingRecipe, folder: Path) -> None:
    train_drafter(recipe, folder, Listener(60 + 5, lambda: os.kill(os.getpid(), signal.SIGKILL)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 3}, r"max_new_tokens: 2 then, 3 now"),
        ({"temperature": 0.5}, r"temperature: 0\.0 then, 0\.5 now"),
        ({"batch_size": 8}, r"batch_size: 16 then, 8 now"),
    ],
)
@pytest.mark.parametrize("is_done", [True, False])
def test_answers_under_other_settings_are_refused(
    change: dict[str, float], message: str, is_done: bool, answering: TrainingRecipe, tmp_path: Path
) -> None:
    train_drafter(answering, tmp_path, NoReporter())
    if not is_done:
        (tmp_path / "answers.done.json").unlink()
        shard_files(tmp_path / "answers")[-1].unlink()
    (stage,) = answering.stages
    other = replace(answering, stages=(replace(stage, **change),))
    with pytest.raises(InvalidInputError, match=message):
        train_drafter(other, tmp_path, NoReporter())
    train_drafter(answering, tmp_path, NoReporter())


def test_answers_of_another_target_are_refused_whatever_its_name(
    answering: TrainingRecipe, target_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    shutil.copytree(target_folder, target)
    moved = replace(answering, target=str(target))
    train_drafter(answering, tmp_path / "run", NoReporter())
    train_drafter(moved, tmp_path / "run", NoReporter())
    weights = load_file(target / "model.safetensors")
    save_file({name: each * 2 for name, each in weights.items()}, target / "model.safetensors")
    with pytest.raises(InvalidInputError, match=r"target: .*sha256 .* then, .*sha256 .* now"):
        train_drafter(moved, tmp_path / "run", NoReporter())


def test_answers_to_other_prompts_are_refused(answering: TrainingRecipe, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    (stage,) = answering.stages
    assert isinstance(stage, AnswersStage)
    recipe = replace(answering, stages=(replace(stage, prompts=(str(prompts),)),))
    prompts.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    train_drafter(recipe, tmp_path / "run", NoReporter())
    prompts.write_text('{"prompt": "one"}\n{"prompt": "six"}\n{"prompt": "three"}\n')
    with pytest.raises(InvalidInputError, match=r"2 prompts \(sha256 .* then, 3 prompts"):
        train_drafter(recipe, tmp_path / "run", NoReporter())


def test_a_corpus_of_another_text_is_refused(
    pretraining: TrainingRecipe, texts_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train_drafter(pretraining, folder, NoReporter())
    texts_file.write_text(texts_file.read_text().replace("and", "or_"))
    with pytest.raises(InvalidInputError, match=r"source: .*texts\.jsonl \(sha256"):
        train_drafter(pretraining, folder, NoReporter())
    shutil.rmtree(folder / "web")
    with pytest.raises(InvalidInputError, match=r"data\[1\]: .*web \(sha256 .*delete .*pretrain"):
        train_drafter(pretraining, folder, NoReporter())


def test_shards_of_which_nobody_knows_the_origin_are_not_taken(
    pretraining: TrainingRecipe, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train_drafter(pretraining, folder, NoReporter())
    lose_record(folder)
    tear_done_mark(folder)
    with pytest.raises(InvalidInputError, match=r"made_from\.json is lost or of another version"):
        train_drafter(pretraining, folder, NoReporter())


def test_a_shard_that_does_not_belong_to_a_corpus_is_told(
    pretraining: TrainingRecipe, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train_drafter(pretraining, folder, NoReporter())
    first = shard_files(folder / "web")[0]
    shutil.copy(first, folder / "web" / "000777.safetensors")
    with pytest.raises(InvalidInputError, match=r"000777\.safetensors does not belong"):
        train_drafter(pretraining, folder, NoReporter())


def test_data_of_another_run_are_taken_if_they_are_whole_and_of_this_tokenizer(
    pretraining: TrainingRecipe, tmp_path: Path
) -> None:
    corpus, pretrain = pretraining.stages
    assert isinstance(pretrain, PretrainStage)
    train_drafter(replace(pretraining, stages=(corpus,)), tmp_path / "one", NoReporter())
    web = tmp_path / "one" / "web"
    other = replace(pretraining, stages=(replace(pretrain, data=(str(web),)),))
    train_drafter(other, tmp_path / "two", NoReporter())
    lost = shard_files(web)[0]
    lost.rename(tmp_path / "aside")
    with pytest.raises(TrainingError, match=r"000000\.safetensors is lost; run the recipe that"):
        train_drafter(other, tmp_path / "three", NoReporter())
    (tmp_path / "aside").rename(lost)
    (tmp_path / "one" / "web.done.json").unlink()
    with pytest.raises(TrainingError, match="it is not finished"):
        train_drafter(other, tmp_path / "three", NoReporter())


def test_tokens_that_the_target_does_not_know_are_told(
    distillation: TrainingRecipe, tmp_path: Path
) -> None:
    (stage,) = distillation.stages
    assert isinstance(stage, DistilStage)
    for path in shard_files(Path(stage.data[0])):
        tensors = load_file(path)
        tensors["answers"][0] = 9999
        (tmp_path / "data").mkdir(exist_ok=True)
        save_file(tensors, tmp_path / "data" / path.name)
    other = replace(distillation, stages=(replace(stage, data=(str(tmp_path / "data"),)),))
    with pytest.raises(InvalidInputError, match="has the token 9999, and the target knows 272"):
        train_drafter(other, tmp_path / "run", NoReporter())


def test_a_folder_without_data_is_told(distillation: TrainingRecipe, tmp_path: Path) -> None:
    (stage,) = distillation.stages
    assert isinstance(stage, DistilStage)
    other = replace(distillation, stages=(replace(stage, data=("nowhere",)),))
    with pytest.raises(InvalidInputError, match="no texts to learn from in nowhere"):
        train_drafter(other, tmp_path, NoReporter())


def test_a_second_run_in_one_folder_is_refused_until_the_first_has_ended(
    pretraining: TrainingRecipe, tmp_path: Path
) -> None:
    corpus = replace(pretraining, stages=pretraining.stages[:1])
    with (
        alone(tmp_path / "train.lock", "busy"),
        pytest.raises(InvalidInputError, match="another process trains in"),
    ):
        train_drafter(corpus, tmp_path, NoReporter())
    process = get_context("fork").Process(target=_train_and_die, args=(corpus, tmp_path))
    process.start()
    process.join(PATIENCE_S)
    train_drafter(corpus, tmp_path, NoReporter())


def test_a_recipe_without_a_learning_stage_returns_the_folder_of_its_run(
    answering: TrainingRecipe, tmp_path: Path
) -> None:
    assert train_drafter(answering, tmp_path, NoReporter()) == tmp_path


def test_an_output_that_is_a_file_is_told(answering: TrainingRecipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="file"):
        train_drafter(answering, tmp_path / "file", NoReporter())


@pytest.mark.parametrize("num_whole", [0, 1, 3, 6, 9, 14, 20])
def test_a_full_disk_at_any_write_is_told_and_the_same_command_goes_on(
    num_whole: int, pretraining: TrainingRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_drafter(pretraining, tmp_path / "good", NoReporter())
    left = [num_whole]
    original = files.bring_to_disk

    def fill_up(path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "bring_to_disk", fill_up)
        patch.setattr("treesnake.training.checkpoints.bring_to_disk", fill_up)
        with pytest.raises(TrainingError, match=r"No space left.*make room.*same command again"):
            train_drafter(pretraining, tmp_path / "run", NoReporter())
    train_drafter(pretraining, tmp_path / "run", NoReporter())
    assert drafter_files(tmp_path / "run") == drafter_files(tmp_path / "good")
    left_over = [path for path in tmp_path.rglob("*") if path.suffix in (".partial", ".tmp")]
    assert not left_over


@pytest.mark.parametrize("num_bytes", [100, 3000, 20_000, 60_000])
def test_files_that_may_not_grow_are_told(
    num_bytes: int, pretraining: TrainingRecipe, tmp_path: Path
) -> None:
    process = get_context("fork").Process(
        target=_train_with_small_files, args=(pretraining, tmp_path / "run", num_bytes)
    )
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    train_drafter(pretraining, tmp_path / "run", NoReporter())


def _train_with_small_files(recipe: TrainingRecipe, folder: Path, num_bytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    try:
        train_drafter(recipe, folder, NoReporter())
    except TrainingError as error:
        os._exit(0 if "same command again" in str(error) else 3)
    os._exit(2)


def test_a_tokenizer_that_cannot_be_written_is_told_and_leaves_nothing(
    pretraining: TrainingRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise Exception("No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
        with pytest.raises(TrainingError, match=r"the tokenizer: No space left.*make room"):
            train_drafter(pretraining, tmp_path, NoReporter())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("drafter")]
    train_drafter(pretraining, tmp_path, NoReporter())


def test_a_checkpoint_that_cannot_be_loaded_is_told(
    pretraining: TrainingRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_drafter(pretraining, tmp_path, NoReporter())

    def fail(*_arguments: object) -> None:
        raise ValueError("unknown pickle")

    monkeypatch.setattr("accelerate.Accelerator.load_state", fail)
    with pytest.raises(TrainingError, match="cannot be loaded, though it is whole"):
        train_drafter(pretraining, tmp_path, NoReporter())


def test_a_second_learning_stage_knows_what_the_first_left(
    pretraining: TrainingRecipe, tmp_path: Path
) -> None:
    corpus, pretrain = pretraining.stages
    assert isinstance(pretrain, PretrainStage)
    second = replace(pretrain, name="second")
    recipe = replace(pretraining, stages=(corpus, pretrain, second), draft_vocabulary=64)
    train_drafter(recipe, tmp_path, NoReporter())
    train_drafter(recipe, tmp_path, NoReporter())
    longer = replace(pretrain, max_updates=10, learning_rate=3e-2)
    with pytest.raises(InvalidInputError, match=r"drafter of the stage before: .*delete .*second"):
        train_drafter(replace(recipe, stages=(corpus, longer, second)), tmp_path, NoReporter())
    assert torch.is_tensor(
        load_file(tmp_path / "drafter/model.safetensors")["backbone.norm_f.weight"]
    )
