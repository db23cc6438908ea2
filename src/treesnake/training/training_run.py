"""A recipe, stage by stage, from data to a folder with a drafter.

Each stage has a folder of its own. What is finished is not done again, so a run that ended, in
whatever way, goes on when the same command is given. What was made from another target, tokenizer,
source or setting is not used: `treesnake.kept_work` says how that is told.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from treesnake.drafters.vocabulary import read_draft_vocabulary, save_draft_vocabulary
from treesnake.errors import InvalidInputError, TrainingError
from treesnake.kept_work import Facts, FileDigests, KeptFolder, alone, differences
from treesnake.loading.checkpoint import Checkpoint, end_token_ids, find_checkpoint
from treesnake.loading.networks import load_network
from treesnake.loading.options import LoadOptions
from treesnake.loading.pretrained import load_checkpoint
from treesnake.training.answering import Answerer
from treesnake.training.answers import answer_prompts, read_prompts
from treesnake.training.checkpoints import find_damage, find_folder, read_record, write_folder
from treesnake.training.corpus import PROMPTS_FILE, collect_corpus, read_left_out
from treesnake.training.devices import new_accelerator, rounded_products
from treesnake.training.distillation_loss import DistillationLoss, Objective
from treesnake.training.draft_vocabulary import choose_draft_vocabulary
from treesnake.training.learner import (
    Learner,
    build_learner,
    keep_prompt_window,
    locate_trained,
)
from treesnake.training.progress import Evaluation
from treesnake.training.provenance import StageRecord, write_provenance
from treesnake.training.reporting import NoReporter, Reporter
from treesnake.training.shards import read_shard, shard_files
from treesnake.training.standing_alone import make_stand_alone
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
from treesnake.training.work_sources import WorkSources
from treesnake.utf8 import check_path

DRAFTER_FOLDER = "drafter"
LOGS_FOLDER = "logs"
VOCABULARY_FOLDER = "draft-vocabulary"
DIGESTS_FILE = "digests.json"
LOCK_FILE = "train.lock"

Result = TypeVar("Result")


def train_drafter(
    recipe: TrainingRecipe, folder: Path, reporter: Reporter, *, tensorboard: bool = False
) -> Path:
    """Runs a recipe, or what is left of it; returns the folder of the drafter.

    Args:
        recipe: what is made.
        folder: gets a folder for each stage, and `drafter`, which `load_drafter` takes; it is
            returned itself if the recipe has no learning stage.
        reporter: is told how it goes.
        tensorboard: whether logs are written for it.

    Raises:
        InvalidInputError: if something in the recipe cannot be right, what is in the folder was
            made from something else, or another process trains there.
        LoadError: if the target cannot be had.
        TrainingError: if training cannot go on; what is done is kept.
    """
    accelerator = new_accelerator(recipe.precision, folder / LOGS_FOLDER if tensorboard else None)
    own_reporter = reporter if accelerator.is_main_process else NoReporter()
    busy = f"another process trains in {folder}; wait for its end, or give the recipe another name"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = alone(folder / LOCK_FILE, busy) if accelerator.is_main_process else nullcontext()
        with held, rounded_products(recipe.precision):
            return _TrainingRun(recipe, folder, accelerator, own_reporter, tensorboard).go()
    except OSError as error:
        raise TrainingError(
            f"training in {folder} cannot go on: {error}; what was written is whole, so make room "
            "or put right what is named, and run the same command again"
        ) from error


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
        self._digests = FileDigests(folder / DIGESTS_FILE)
        self._sources = self._in_turn(lambda: WorkSources(recipe, self._checkpoint, self._digests))
        self._vocabulary: Int[Tensor, " drafted"] | None = None
        self._answerer: tuple[Path, Answerer] | None = None

    def go(self) -> Path:
        for stage in self._recipe.stages:
            if isinstance(stage, CorpusStage):
                self._collect(stage)
            elif isinstance(stage, AnswersStage):
                self._answer(stage)
            else:
                self._learn(stage)
            self._accelerator.wait_for_everyone()
        if not self._records:
            return self._folder
        if self._accelerator.is_main_process:
            made_from = self._sources.of_drafter(self._best)
            write_folder(self._folder / DRAFTER_FOLDER, self._write_drafter, made_from)
        self._accelerator.wait_for_everyone()
        return self._folder / DRAFTER_FOLDER

    def _in_turn(self, act: Callable[[], Result]) -> Result:
        """Does what reads many files in the main process first, and the others know its digests."""
        with self._accelerator.main_process_first():
            self._digests.recall()
            result = act()
            if self._accelerator.is_main_process:
                self._digests.remember()
        return result

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
        folder = KeptFolder(self._folder / stage.name, self._digests)
        made_from = self._in_turn(lambda: self._sources.of_corpus(stage))
        if self._in_turn(lambda: folder.open(made_from, self._reporter.tell)):
            return
        if self._accelerator.is_main_process:
            self._reporter.begin(stage.name, 0, stage.max_rows)
            try:
                tokenizer = self._checkpoint.tokenizer
                collect_corpus(stage, folder.folder, tokenizer, self._target_size, self._reporter)
            finally:
                self._reporter.end()
            folder.finish(made_from)

    def _answer(self, stage: AnswersStage) -> None:
        prompts = read_prompts([self._prompts_file(name) for name in stage.prompts])
        folder = KeptFolder(self._folder / stage.name, self._digests)
        asked = self._answering(stage)
        made_from = self._in_turn(lambda: self._sources.of_answers(stage, prompts, asked))
        if self._in_turn(lambda: folder.open(made_from, self._reporter.tell)):
            return
        answerer = self._load_answerer(asked)
        if stage.num_top > answerer.network.vocab_size:
            raise InvalidInputError(
                f'num_top of the stage "{stage.name}" is {stage.num_top}, and {asked.name} knows '
                f"{answerer.network.vocab_size} tokens"
            )
        accelerator = self._accelerator
        self._reporter.begin(stage.name, 0, len(prompts))
        try:
            answer_prompts(
                answerer,
                prompts,
                stage,
                folder.folder,
                written_with=None if asked is self._checkpoint else self._checkpoint.tokenizer,
                seed=self._recipe.seed,
                share=(accelerator.process_index, accelerator.num_processes),
                reporter=self._reporter,
            )
        finally:
            self._reporter.end()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            folder.finish(made_from)

    def _answering(self, stage: AnswersStage) -> Checkpoint:
        """Returns the model that answers, this recipe's target or another one."""
        if stage.answered_by is None:
            return self._checkpoint
        return find_checkpoint(stage.answered_by)

    def _load_answerer(self, checkpoint: Checkpoint) -> Answerer:
        """Loads a model as users run it; the last one stays for the next stage."""
        if self._answerer is None or self._answerer[0] != checkpoint.path:
            options = LoadOptions(self._recipe.target_dtype, str(self._accelerator.device))
            loaded = load_network(checkpoint, options)
            ends = tuple(sorted(end_token_ids(checkpoint)))
            self._answerer = checkpoint.path, Answerer(loaded.network, checkpoint.tokenizer, ends)
        return self._answerer[1]

    def _learn(self, stage: PretrainStage | DistilStage) -> None:
        self._answerer = None
        folders = [self._data_folder(name) for name in stage.data]
        data = self._in_turn(lambda: self._sources.of_data(folders))
        texts = read_texts(folders, stage.max_tokens, self._target_size)
        if texts.num_left_out:
            self._reporter.tell(
                f"{texts.num_left_out} texts left out, for nothing in their first "
                f"{stage.max_tokens} tokens is learned"
            )
        self._vocabulary = vocabulary = self._draft_vocabulary(folders, data)
        if vocabulary is not None:
            self._reporter.tell(
                f"{texts.share_outside(vocabulary):.1%} of the answers' tokens are outside of the "
                "draft vocabulary and can never be guessed"
            )
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
            self._sources.of_learning(stage, data, vocabulary, self._best),
            self._recipe.seed,
            self._accelerator,
            self._reporter,
            end_token_ids(self._checkpoint),
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
        self._best = self._folder / stage.name / BEST_FOLDER

    def _draft_vocabulary(
        self, folders: Sequence[Path], data: Sequence[Facts]
    ) -> Int[Tensor, " drafted"] | None:
        """Returns the tokens that may be drafted: those of before, or what the first data shows."""
        recipe = self._recipe
        if self._vocabulary is not None:
            return self._vocabulary
        if recipe.draft_vocabulary is None:
            if not isinstance(recipe.drafter, TrainedBefore):
                return None
            return read_draft_vocabulary(locate_trained(recipe.drafter))
        folder = self._folder / VOCABULARY_FOLDER
        ends = sorted(end_token_ids(self._checkpoint))
        size = recipe.draft_vocabulary
        made_from = {"size": size, "ends": ends, "target size": self._target_size, "data": data}
        if self._accelerator.is_main_process and not _is_made_from(folder, made_from):
            shards = (read_shard(path) for each in folders for path in shard_files(each))
            chosen = choose_draft_vocabulary(shards, size, ends, self._target_size)
            write_folder(folder, lambda partial: save_draft_vocabulary(partial, chosen), made_from)
        self._accelerator.wait_for_everyone()
        return read_draft_vocabulary(folder)

    def _write_drafter(self, folder: Path) -> None:
        """Writes all of it; the main process is alone here, so nothing may wait for the others."""
        learner = self._new_learner()
        dtype = getattr(torch, self._recipe.stored_dtype)
        is_shared = keeps_target_embeddings(learner, self._recipe.start, self._checkpoint)
        learner.save(folder, dtype, leave_out_embeddings=is_shared)
        if isinstance(self._recipe.drafter, TrainedBefore):
            keep_prompt_window(locate_trained(self._recipe.drafter), folder)
        _save_tokenizer(self._recipe.target, folder)
        if self._vocabulary is not None:
            save_draft_vocabulary(folder, self._vocabulary)
        write_provenance(
            folder,
            self._recipe,
            self._records,
            learner.num_parameters,
            self._accelerator.num_processes,
            {
                stage.name: read_left_out(self._folder / stage.name)
                for stage in self._recipe.stages
                if isinstance(stage, CorpusStage)
            },
        )
        if is_shared and self._recipe.stands_alone:
            make_stand_alone(folder, self._checkpoint)

    def _prompts_file(self, name: str) -> Path:
        path = check_path(name, "a file of prompts")
        collected = self._folder / name / PROMPTS_FILE
        return collected if collected.exists() else path

    def _data_folder(self, name: str) -> Path:
        path = check_path(name, "a folder of texts")
        made = self._folder / name
        return made if made.is_dir() else path


def _is_made_from(folder: Path, made_from: Facts) -> bool:
    """Tells whether a folder is there, whole and made from this."""
    if find_folder(folder) is None or find_damage(folder) is not None:
        return False
    record = read_record(folder)
    return record is not None and not differences(record.made_from, made_from)


def _save_tokenizer(target: str, folder: Path) -> None:
    """Writes a target's tokenizer as it was read: one that was used writes other settings."""
    try:
        find_checkpoint(target).tokenizer.save_pretrained(folder)
    except Exception as error:
        raise OSError(f"the tokenizer: {error}") from error


def _load_weights(learner: Learner, folder: Path) -> None:
    """Loads what a trainer found best; tied weights are stored once."""
    if (found := find_damage(folder)) is not None:
        raise TrainingError(
            f"{folder} is broken: {found}; run the same command again, and it is taken from the "
            "last checkpoint"
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
