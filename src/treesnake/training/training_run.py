"""A recipe, stage by stage, from data to a folder with a drafter.

Each stage has a folder of its own. What is finished is not done again, so a run that ended, in
whatever way, goes on when the same command is given.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from treesnake.drafters.vocabulary import read_draft_vocabulary, save_draft_vocabulary
from treesnake.errors import InvalidInputError, TrainingError
from treesnake.files import write_text
from treesnake.loading.checkpoint import end_token_ids, find_checkpoint
from treesnake.loading.options import LoadOptions
from treesnake.loading.pretrained import load_checkpoint
from treesnake.models.hf_attention import HfAttention
from treesnake.training.answers import answer_prompts, read_prompts
from treesnake.training.checkpoints import find_damage, find_folder, write_folder
from treesnake.training.corpus import PROMPTS_FILE, collect_corpus
from treesnake.training.devices import new_accelerator, rounded_products
from treesnake.training.distillation_loss import DistillationLoss, Objective
from treesnake.training.draft_vocabulary import choose_draft_vocabulary
from treesnake.training.learner import Learner, build_learner, locate_trained
from treesnake.training.progress import Evaluation
from treesnake.training.provenance import StageRecord, write_provenance
from treesnake.training.reporting import NoReporter, Reporter
from treesnake.training.rounding import rounded_to_int8, rounding_pays
from treesnake.training.shards import read_shard, shard_files
from treesnake.training.start import keeps_target_embeddings, start_from_target
from treesnake.training.texts import Texts, read_texts
from treesnake.training.trainer import BEST_FOLDER, WEIGHTS_FILE, Trainer
from treesnake.training.training_recipe import (
    AnswersStage,
    CorpusStage,
    DistilStage,
    PretrainStage,
    TrainedBefore,
    TrainingRecipe,
)

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

DONE_FILE = "done.json"
DRAFTER_FOLDER = "drafter"
LOGS_FOLDER = "logs"
VOCABULARY_FOLDER = "draft-vocabulary"


def train_drafter(
    recipe: TrainingRecipe, folder: Path, reporter: Reporter, *, tensorboard: bool = False
) -> Path:
    """Runs a recipe, or what is left of it; returns the folder of the drafter.

    Args:
        recipe: what is made.
        folder: gets a folder for each stage, and `drafter`, which `load_drafter` takes.
        reporter: is told how it goes.
        tensorboard: whether logs are written for it.

    Raises:
        InvalidInputError: if something in the recipe cannot be right.
        LoadError: if the target cannot be had.
        TrainingError: if training cannot go on; what is done is kept.
    """
    accelerator = new_accelerator(recipe.precision, folder / LOGS_FOLDER if tensorboard else None)
    own_reporter = reporter if accelerator.is_main_process else NoReporter()
    with rounded_products(recipe.precision):
        return _TrainingRun(recipe, folder, accelerator, own_reporter, tensorboard).go()


class _TrainingRun:
    def __init__(
        self,
        recipe: TrainingRecipe,
        folder: Path,
        accelerator: Accelerator,
        reporter: Reporter,
        tensorboard: bool,
    ) -> None:
        self._recipe = recipe
        self._checkpoint = find_checkpoint(recipe.target)
        self._folder = folder
        self._accelerator = accelerator
        self._reporter = reporter
        self._tensorboard = tensorboard
        self._records: list[StageRecord] = []
        self._best: Path | None = None
        self._vocabulary: Int[Tensor, " drafted"] | None = None

    def go(self) -> Path:
        for stage in self._recipe.stages:
            if isinstance(stage, CorpusStage):
                self._collect(stage)
            elif isinstance(stage, AnswersStage):
                self._answer(stage)
            else:
                self._learn(stage)
            self._accelerator.wait_for_everyone()
        if self._records and self._accelerator.is_main_process:
            write_folder(self._folder / DRAFTER_FOLDER, self._write_drafter)
        self._accelerator.wait_for_everyone()
        return self._folder / DRAFTER_FOLDER

    @cached_property
    def _target(self) -> PreTrainedModel:
        options = LoadOptions(self._recipe.target_dtype, str(self._accelerator.device))
        return load_checkpoint(self._checkpoint, options).model

    @cached_property
    def _target_size(self) -> int:
        return self._checkpoint.config.get_text_config(decoder=True).vocab_size

    def _new_learner(self) -> Learner:
        """Returns the network as the recipe starts it, or as the last learning stage left it."""
        recipe = self._recipe
        learner = build_learner(recipe.drafter, self._checkpoint, recipe.seed)
        start_from_target(learner, recipe.start, self._checkpoint)
        if self._best is not None:
            _load_weights(learner, self._best)
        return learner

    def _collect(self, stage: CorpusStage) -> None:
        if self._is_done(stage):
            return
        if self._accelerator.is_main_process:
            self._reporter.begin(stage.name, 0, stage.max_rows)
            try:
                folder = self._folder / stage.name
                tokenizer = self._checkpoint.tokenizer
                collect_corpus(stage, folder, tokenizer, self._target_size, self._reporter)
            finally:
                self._reporter.end()
            self._mark_done(stage)

    def _answer(self, stage: AnswersStage) -> None:
        if self._is_done(stage):
            return
        prompts = read_prompts([self._prompts_file(name) for name in stage.prompts])
        accelerator = self._accelerator
        self._reporter.begin(stage.name, 0, len(prompts))
        try:
            with rounded_to_int8(self._target) if self._is_rounded(stage) else nullcontext():
                answer_prompts(
                    HfAttention(self._target),
                    self._checkpoint.tokenizer,
                    prompts,
                    sorted(end_token_ids(self._checkpoint)),
                    stage,
                    self._folder / stage.name,
                    seed=self._recipe.seed,
                    share=(accelerator.process_index, accelerator.num_processes),
                    reporter=self._reporter,
                )
        finally:
            self._reporter.end()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._mark_done(stage)

    def _is_rounded(self, stage: AnswersStage) -> bool:
        """Tells whether the target answers in 8 bits, and tells the user where it does not."""
        if not stage.int8 or self._accelerator.device.type != "cpu" or rounding_pays():
            return stage.int8
        self._reporter.tell(
            "this CPU multiplies 8-bit integers more slowly than float32 numbers, "
            "so the target answers unrounded in spite of int8 = true"
        )
        return False

    def _learn(self, stage: PretrainStage | DistilStage) -> None:
        folders = [self._data_folder(name) for name in stage.data]
        self._vocabulary = vocabulary = self._draft_vocabulary(folders)
        texts = read_texts(folders, stage.max_tokens)
        is_distilled = isinstance(stage, DistilStage)
        is_stored = is_distilled and stage.probabilities == "stored"
        if is_stored and not texts.has_target_probs:
            raise InvalidInputError(
                f'the data of the stage "{stage.name}" has no probabilities of the target; let the '
                'target answer first, or choose probabilities = "target"'
            )
        loss_module = DistillationLoss(
            self._new_learner(), _objective(stage), self._target_size, vocabulary
        )
        if self._tensorboard:
            self._accelerator.init_trackers(stage.name)
        trainer = Trainer(
            stage,
            loss_module,
            texts,
            self._folder / stage.name,
            self._fingerprint(stage, vocabulary),
            self._recipe.seed,
            self._accelerator,
            self._reporter,
            self._target if is_distilled and not is_stored else None,
        )
        best = trainer.run()
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._records.append(_record(stage.name, texts, trainer.evaluations))
        self._reporter.tell(
            f"done; the best drafter is that of update {best.update} with "
            f"{best.judgement.tokens_per_step:.3f} tokens/step"
        )
        self._accelerator.free_memory()
        self._best = find_folder(self._folder / stage.name / BEST_FOLDER)

    def _draft_vocabulary(self, folders: Sequence[Path]) -> Int[Tensor, " drafted"] | None:
        """Returns the tokens that may be drafted: those of before, or what the first data shows."""
        recipe = self._recipe
        if recipe.draft_vocabulary is None:
            if not isinstance(recipe.drafter, TrainedBefore):
                return None
            return read_draft_vocabulary(locate_trained(recipe.drafter))
        folder = self._folder / VOCABULARY_FOLDER
        if self._accelerator.is_main_process and find_folder(folder) is None:
            shards = (read_shard(path) for each in folders for path in shard_files(each))
            ends = sorted(end_token_ids(self._checkpoint))
            size = recipe.draft_vocabulary
            chosen = choose_draft_vocabulary(shards, size, ends, self._target_size)
            write_folder(folder, lambda partial: save_draft_vocabulary(partial, chosen))
        self._accelerator.wait_for_everyone()
        return read_draft_vocabulary(folder)

    def _write_drafter(self, folder: Path) -> None:
        """Writes all of it; the main process is alone here, so nothing may wait for the others."""
        learner = self._new_learner()
        dtype = getattr(torch, self._recipe.stored_dtype)
        is_shared = keeps_target_embeddings(learner, self._recipe.start, self._checkpoint)
        learner.save(folder, dtype, leave_out_embeddings=is_shared)
        self._checkpoint.tokenizer.save_pretrained(folder)
        if self._vocabulary is not None:
            save_draft_vocabulary(folder, self._vocabulary)
        write_provenance(
            folder,
            self._recipe,
            self._records,
            learner.num_parameters,
            self._accelerator.num_processes,
        )

    def _fingerprint(
        self, stage: PretrainStage | DistilStage, vocabulary: Int[Tensor, " drafted"] | None
    ) -> str:
        """Returns a checksum of what may not change once a stage has begun, but for its texts."""
        recipe = self._recipe
        begun_as = [recipe.target, asdict(recipe.drafter), asdict(recipe.start), recipe.seed]
        drafted = None if vocabulary is None else vocabulary.tolist()
        fixed = {key: value for key, value in asdict(stage).items() if key not in CHANGEABLE}
        text = json.dumps([begun_as, fixed, drafted], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _prompts_file(self, name: str) -> Path:
        collected = self._folder / name / PROMPTS_FILE
        return collected if collected.exists() else Path(name).expanduser()

    def _data_folder(self, name: str) -> Path:
        made = self._folder / name
        return made if made.is_dir() else Path(name).expanduser()

    def _is_done(self, stage: CorpusStage | AnswersStage) -> bool:
        path = self._done_file(stage)
        if not path.exists():
            return False
        if path.read_text("utf-8") != _described(stage):
            raise InvalidInputError(
                f"{self._folder / stage.name} was made with other settings of this stage; delete "
                f"it and {path.name} to make it anew, or give the stage another name"
            )
        return True

    def _mark_done(self, stage: CorpusStage | AnswersStage) -> None:
        write_text(self._done_file(stage), _described(stage))

    def _done_file(self, stage: CorpusStage | AnswersStage) -> Path:
        return self._folder / f"{stage.name}.{DONE_FILE}"


def _described(stage: CorpusStage | AnswersStage) -> str:
    return json.dumps(asdict(stage), indent=1) + "\n"


def _load_weights(learner: Learner, folder: Path) -> None:
    """Loads what a trainer found best; tied weights are stored once."""
    if (found := find_damage(folder)) is not None:
        raise TrainingError(
            f"{folder} is broken: {found}; delete {folder.parent} to train this stage anew"
        )
    weights = load_file(folder / WEIGHTS_FILE)
    missing, unexpected = learner.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("lm_head.weight") for name in missing), missing


def _objective(stage: PretrainStage | DistilStage) -> Objective:
    if isinstance(stage, DistilStage):
        return Objective(stage.divergence, stage.cross_entropy_weight)
    return Objective(None, 1.0)


def _record(name: str, texts: Texts, evaluations: Sequence[Evaluation]) -> StageRecord:
    last = evaluations[-1]
    return StageRecord(
        name=name,
        num_texts=len(texts),
        num_answer_tokens=texts.num_learned(range(len(texts))),
        num_tokens_run=last.num_tokens,
        hours=last.seconds_s / 3600,
        evaluations=evaluations,
    )
