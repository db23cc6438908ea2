"""What each part of a run is made from, as `treesnake.kept_work` compares it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from treesnake.errors import InvalidInputError, TrainingError
from treesnake.kept_work import (
    Facts,
    FileDigests,
    KeptFolder,
    content_fact,
    differences,
    sha256_of,
)
from treesnake.loading.checkpoint import Checkpoint
from treesnake.training.corpus import FORMATS
from treesnake.training.learner import locate_trained
from treesnake.training.shards import shard_files
from treesnake.training.training_recipe import (
    AnswersStage,
    CorpusStage,
    DistilStage,
    PretrainStage,
    Stage,
    TrainedBefore,
    TrainingRecipe,
)
from treesnake.utf8 import check_path

CHANGEABLE = (
    "learning_rate",
    "final_rate",
    "warmup",
    "clip_norm",
    "max_updates",
    "evaluate_every",
    "checkpoint_every",
)
"""What a learning stage may have set otherwise after it has begun, as when its loss got lost."""

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
)
"""What decides what a model says; its tokenizer is looked at apart."""


class WorkSources:
    """What a recipe's work is made from.

    A model's files are hashed when a run begins, once as long as they do not change. So are sources
    in local files, and shards. Data sets at the hub are known by their names.

    Args:
        recipe: what is made.
        target: its target.
        digests: of files.
    """

    def __init__(self, recipe: TrainingRecipe, target: Checkpoint, digests: FileDigests) -> None:
        self._recipe = recipe
        self._digests = digests
        self._target = self._model(target.path, target.name)
        self._tokenizer = content_fact(_sha256_of_tokenizer(target.tokenizer), target.name)

    def of_corpus(self, stage: CorpusStage) -> Facts:
        """Returns what a corpus is made from; prompts are text, and need no tokenizer.

        Raises:
            InvalidInputError: if a local source cannot be read.
        """
        source = check_path(stage.source, f'the source of the stage "{stage.name}"')
        is_local = source.suffix in FORMATS
        return {
            "tokenizer": None if stage.content == "prompts" else self._tokenizer,
            "source": self._file(source) if is_local else stage.source,
            "exclude": [
                self._file(check_path(each, "a file to exclude")) for each in stage.exclude
            ],
            "settings": _settings(stage, "source", "exclude"),
        }

    def of_answers(
        self, stage: AnswersStage, prompts: Sequence[str], answering: Checkpoint
    ) -> Facts:
        """Returns what answers are made from.

        Args:
            stage: how they are made.
            prompts: what is answered.
            answering: the model that answers.
        """
        is_other = stage.answered_by is not None
        target = self._model(answering.path, answering.name) if is_other else self._target
        return {
            "target": target,
            "kept": "text" if is_other else "probabilities",
            "target_dtype": self._recipe.target_dtype,
            "tokenizer": self._tokenizer,
            "seed": self._recipe.seed,
            "prompts": content_fact(sha256_of(list(prompts)), f"{len(prompts)} prompts"),
            "settings": _settings(stage, "prompts", "answered_by"),
        }

    def of_data(self, folders: Sequence[Path]) -> list[Facts]:
        """Returns what is learned, folder by folder.

        Raises:
            InvalidInputError: if there is no such folder, or it has another target's tokens.
            TrainingError: if one is not whole.
        """
        return [self._data(folder) for folder in folders]

    def of_learning(
        self,
        stage: PretrainStage | DistilStage,
        data: Sequence[Facts],
        vocabulary: Int[Tensor, " drafted"] | None,
        begins_as: Path | None,
    ) -> Facts:
        """Returns what a drafter is made from, but for what may change while it is made.

        Args:
            stage: in which it learns.
            data: what is learned.
            vocabulary: the tokens that it says.
            begins_as: the best drafter of the learning stage before.
        """
        recipe = self._recipe
        drafted = None if vocabulary is None else vocabulary.tolist()
        return {
            "target": self._target,
            "target_dtype": recipe.target_dtype,
            "drafter": self._drafter(),
            "start": asdict(recipe.start),
            "seed": recipe.seed,
            "data": list(data),
            "draft vocabulary": drafted
            and content_fact(sha256_of(drafted), f"{len(drafted)} tokens"),
            "drafter of the stage before": begins_as and self._model(begins_as, str(begins_as)),
            "settings": _settings(stage, "data", *CHANGEABLE),
        }

    def of_drafter(self, best: Path | None) -> Facts:
        """Returns what the drafter in the end is made from."""
        return {
            "target": self._target,
            "tokenizer": self._tokenizer,
            "stored_dtype": self._recipe.stored_dtype,
            "stands_alone": self._recipe.stands_alone,
            "weights": best and self._model(best, str(best)),
        }

    def _drafter(self) -> Facts:
        drafter = self._recipe.drafter
        if isinstance(drafter, TrainedBefore):
            return {"checkpoint": self._model(locate_trained(drafter), drafter.source)}
        return asdict(drafter)

    def _data(self, folder: Path) -> Facts:
        files = shard_files(folder)
        if not files:
            raise InvalidInputError(
                f"there are no texts to learn from in {folder}; name an earlier stage, or a folder "
                "of shards"
            )
        kept = KeptFolder(folder, self._digests)
        if fault := kept.fault():
            raise TrainingError(
                f"{folder} is not as it was made: {fault}; run the recipe that makes it to its end"
            )
        tokenizer = (kept.made_from or {}).get("tokenizer", self._tokenizer)
        if found := differences({"tokenizer": tokenizer}, {"tokenizer": self._tokenizer}):
            raise InvalidInputError(
                f"{folder} has the tokens of another tokenizer ({found[0]}); let this recipe make "
                "it anew"
            )
        return content_fact(self._digests.of_all(files), str(folder))

    def _file(self, path: Path) -> Facts:
        try:
            return content_fact(self._digests.of(path), str(path))
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{path} cannot be read: {error}") from error

    def _model(self, path: Path, name: str) -> Facts:
        files = (
            [path]
            if path.is_file()
            else sorted(file for pattern in MODEL_FILES for file in path.glob(pattern))
        )
        return content_fact(self._digests.of_all(files), name)


def _settings(stage: Stage, *left_out: str) -> Mapping[str, Any]:
    return {key: each for key, each in asdict(stage).items() if key not in ("name", *left_out)}


def _sha256_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    words = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    return sha256_of(
        [words, tokenizer.chat_template, tokenizer.bos_token_id, tokenizer.eos_token_id]
    )
