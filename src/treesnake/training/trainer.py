"""The training loop: updates, held-out scores, checkpoints; and how a run that ended goes on."""

import json
import math
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from treesnake.errors import InvalidInputError, TrainingError
from treesnake.kept_work import Facts, check_same
from treesnake.training.chains import chain_steps, in_rows
from treesnake.training.checkpoints import (
    WRITE_ERRORS,
    abandon_folder,
    begin_folder,
    checkpoint_folder,
    find_damage,
    find_folder,
    finish_folder,
    newest_checkpoint,
    partial_folder,
    read_record,
    remove_folder,
    remove_old_checkpoints,
    write_folder,
)
from treesnake.training.distillation_loss import DistillationLoss, LossTerms
from treesnake.training.held_out import HeldOutScore, score_texts
from treesnake.training.optimizers import learning_rate, new_optimizers
from treesnake.training.progress import Evaluation, TrainingProgress
from treesnake.training.reporting import Reporter
from treesnake.training.rollouts import roll_out
from treesnake.training.texts import Batch, Texts, cut_passes, epoch_updates
from treesnake.training.training_recipe import DistilStage, LearningStage

EPOCHS_PER_SEED = 100_003
"""So that no two seeds have an order of texts in common."""

BEST_FOLDER = "best"
CHECKPOINTS_FOLDER = "checkpoints"
WEIGHTS_FILE = "weights.safetensors"
JUDGEMENT_FILE = "judgement.json"

BEST_FILES = {name: f"best-{name}" for name in (WEIGHTS_FILE, JUDGEMENT_FILE)}
"""What the files of the best drafter so far are called in a checkpoint."""


class Trainer:
    """One learning stage.

    Args:
        stage: what the recipe says of it.
        loss_module: the learner and what it minimises.
        texts: to learn from.
        folder: of the stage; it gets `checkpoints` and `best`.
        made_from: all that decides about the result; a run goes on only with what it began with.
        seed: of the order of the texts.
        accelerator: this process's part of the run.
        reporter: is told how it goes.
        end_tokens: of the target.
        target: runs along where its probabilities are not stored.
    """

    def __init__(
        self,
        stage: LearningStage,
        loss_module: DistillationLoss,
        texts: Texts,
        folder: Path,
        made_from: Facts,
        seed: int,
        accelerator: Accelerator,
        reporter: Reporter,
        end_tokens: Collection[int],
        target: PreTrainedModel | None = None,
    ) -> None:
        self._stage = stage
        self._texts = texts
        self._folder = folder
        self._accelerator = accelerator
        self._reporter = reporter
        self._end_tokens = end_tokens
        self._target = target
        learned, held_out = texts.split(stage.held_out)
        if not learned or not held_out:
            raise InvalidInputError(
                f'the stage "{stage.name}" has {len(learned)} texts to learn from and '
                f"{len(held_out)} that are held out; add data, or change held_out"
            )
        self._rollout_tokens = stage.rollout_tokens if isinstance(stage, DistilStage) else 0
        self._weighs_steps = isinstance(stage, DistilStage) and stage.weights == "steps"
        self._seed = seed
        judged_by = _spread(held_out, stage.max_held_out)
        self._held_out = sorted(judged_by, key=lambda i: texts.lengths[i])
        self._updates = _plan(texts, learned, stage, seed)
        self._made_from = made_from
        self._progress = TrainingProgress()
        optimizers = new_optimizers(loss_module.learner, stage)
        if accelerator.distributed_type is DistributedType.FSDP:
            _check_sharded(stage)
        prepared = accelerator.prepare(loss_module, *optimizers)
        self._loss_module: Any = prepared[0]
        self._optimizers: Sequence[Optimizer] = prepared[1:]

    @property
    def evaluations(self) -> Sequence[Evaluation]:
        """All evaluations so far."""
        return self._progress.evaluations

    def run(self) -> Evaluation:
        """Trains to the end, from the newest checkpoint if there is one; returns the best.

        Raises:
            TrainingError: if the loss is no number, memory is short, or nothing can be written.
            InvalidInputError: if the checkpoints are of another recipe or other data.
        """
        self._resume()
        num_updates = len(self._updates)
        self._reporter.begin(self._stage.name, self._progress.update, num_updates)
        try:
            while self._progress.update < num_updates:
                self._update()
                is_last = self._progress.update == num_updates
                if is_last or self._progress.update % self._stage.evaluate_every == 0:
                    self._evaluate()
                if is_last or self._progress.update % self._stage.checkpoint_every == 0:
                    self._save()
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f'the stage "{self._stage.name}" runs {self._stage.pass_tokens} tokens at once, '
                "for which the device has no memory; choose a smaller pass_tokens, and delete "
                f"{self._folder} if it has begun: {error}"
            ) from error
        finally:
            self._reporter.end()
        best = self._progress.best
        assert best is not None
        return best

    def score_held_out(self) -> HeldOutScore:
        """Scores the learner as it is on the held-out texts, in every process alike."""
        columns, counts, temperatures = list[Tensor](), list[int](), list[float]()
        has_ended: list[bool] = []
        self._loss_module.eval()
        lengths = [self._texts.lengths[index] for index in self._held_out]
        for part in cut_passes(lengths, self._stage.pass_tokens):
            batch = self._texts.batch([self._held_out[i] for i in part])
            with torch.no_grad():
                found = self._loss_terms(batch.to(self._accelerator.device))
            columns.append(found.float().cpu())
            counts += batch.num_learned
            temperatures += [float(text[0]) for text in batch.temperatures.split(batch.num_learned)]
            labels = batch.labels.split(batch.num_learned)
            has_ended += [int(text[-1]) in self._end_tokens for text in labels]
        self._loss_module.train()
        terms = LossTerms.of(torch.cat(columns))
        return score_texts(terms, counts, temperatures, self._stage.draft_length, has_ended)

    def _update(self) -> None:
        started = time.monotonic()
        progress, accelerator = self._progress, self._accelerator
        rate = learning_rate(self._stage, progress.update, len(self._updates))
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        passes = self._updates[progress.update]
        indices = [index for part in passes for index in part]
        num_learned = self._num_learned(indices)
        loss, agreement = (self._backward(passes) / num_learned).tolist()
        norm = accelerator.clip_grad_norm_(self._loss_module.parameters(), self._stage.clip_norm)
        self._check_finite(loss, float(norm) if norm is not None else 0.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        num_tokens = sum(self._texts.lengths[index] for index in indices)
        progress.update += 1
        progress.num_tokens += num_tokens
        progress.recent_losses.append(loss)
        elapsed = time.monotonic() - started
        progress.seconds_s += elapsed
        facts = {"loss": loss, "agreement": agreement, "tokens/s": num_tokens / elapsed}
        if progress.evaluations:
            facts["tokens/step"] = progress.evaluations[-1].judgement.tokens_per_step
        self._reporter.advance(1, facts)
        accelerator.log(facts | {"learning rate": rate}, step=progress.update)

    def _backward(self, passes: Sequence[Sequence[int]]) -> Float[Tensor, "2"]:
        """Adds up the gradients of all passes; returns the sums of losses and of right guesses.

        Each process has its share of the passes, all have equally many, and those that are left
        over learn nothing.
        """
        accelerator = self._accelerator
        world, rank = accelerator.num_processes, accelerator.process_index
        num_learned = self._num_learned([index for part in passes for index in part])
        num_rounds = -(-len(passes) // world)
        sums = torch.zeros(2, device=accelerator.device)
        for round_ in range(num_rounds):
            pass_index = round_ * world + rank
            batch = self._texts.batch(passes[min(pass_index, len(passes) - 1)]).to(
                accelerator.device
            )
            if pass_index >= len(passes):
                batch = batch.without_positions()
            is_last = round_ == num_rounds - 1
            with nullcontext() if is_last else accelerator.no_sync(self._loss_module):
                if self._rollout_tokens and len(batch.positions):
                    terms = LossTerms.of(self._rollout_terms(batch, pass_index))
                else:
                    terms = LossTerms.of(self._loss_terms(batch))
                    terms = self._weighted(terms, batch)
                # Gradients of processes are averaged, and are to be summed.
                accelerator.backward(terms.loss.sum() * (world / num_learned))
            sums += torch.stack([terms.loss.detach().sum(), terms.is_right.sum().detach()])
        return accelerator.reduce(sums, "sum")

    def _weighted(self, terms: LossTerms, batch: Batch) -> LossTerms:
        """Returns the terms with losses that count as much as the recipe says."""
        counts = batch.num_learned
        if not self._weighs_steps or not len(batch.positions):
            return terms
        accept_probs = in_rows(terms.accept_prob.detach().cpu(), counts)
        steps = chain_steps(accept_probs, torch.tensor(counts), self._stage.draft_length)
        saved = [row[:count] for row, count in zip(steps.saved_steps, counts, strict=True)]
        return replace(terms, loss=terms.loss * torch.cat(saved).to(terms.loss.device))

    def _num_learned(self, indices: Sequence[int]) -> int:
        if self._rollout_tokens:
            return len(indices) * (self._rollout_tokens + 1)
        return self._texts.num_learned(indices)

    def _rollout_terms(self, batch: Batch, number: int) -> Float[Tensor, "positions 4"]:
        """Lets the drafter speak in a pass, and compares with what the target says to its words."""
        generator = torch.Generator()
        generator.manual_seed((self._seed * 1_000_003 + self._progress.update) * 10_007 + number)
        loss_module: Any = self._accelerator.unwrap_model(self._loss_module)
        batch = roll_out(loss_module, batch, self._rollout_tokens, generator)
        logits = self._target_logits(batch)
        return self._loss_module(replace(batch, labels=logits.argmax(-1)), logits)

    @torch.no_grad()
    def _target_logits(self, batch: Batch) -> Float[Tensor, "positions vocab"]:
        assert self._target is not None
        logits = self._target(input_ids=batch.tokens, use_cache=False).logits
        return logits.flatten(0, 1)[batch.positions]

    def _loss_terms(self, batch: Batch) -> Float[Tensor, "positions 4"]:
        logits = None if self._target is None else self._target_logits(batch)
        return self._loss_module(batch, logits)

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        stage, update = self._stage, self._progress.update
        raise TrainingError(
            f'the loss of the stage "{stage.name}" is {loss} at update {update + 1}, the norm of '
            f"its gradient {norm}; checkpoints from before are in {self._checkpoints}. Try a "
            f"learning_rate of {stage.learning_rate / 3:.2g}, a longer warmup, a smaller "
            'clip_norm, or precision = "float32"; training then goes on from there'
        )

    def _evaluate(self) -> None:
        progress = self._progress
        best = progress.best
        judgement = self.score_held_out()
        evaluation = Evaluation(
            progress.update,
            progress.num_tokens,
            progress.seconds_s,
            sum(progress.recent_losses) / len(progress.recent_losses),
            judgement,
        )
        progress.evaluations.append(evaluation)
        progress.recent_losses = []
        is_best = best is None or judgement.tokens_per_step > best.judgement.tokens_per_step
        if is_best:
            self._write_best(judgement)
        numbers = {
            name: value for name, value in vars(judgement).items() if isinstance(value, float)
        }
        self._accelerator.log(
            {f"held out/{name}": value for name, value in numbers.items()}, step=progress.update
        )
        self._reporter.tell(
            f"update {progress.update}, {progress.num_tokens:,} tokens: "
            f"{judgement.tokens_per_step:.3f} tokens/step, agreement {judgement.agreement:.1%}, "
            f"loss {judgement.loss:.3f}{', the best so far' if is_best else ''}"
        )

    def _write_best(self, judgement: HeldOutScore) -> None:
        state = self._accelerator.get_state_dict(self._loss_module)  # gathered by all processes
        if self._accelerator.is_main_process:
            learner = {name.removeprefix("learner."): each for name, each in state.items()}

            def fill(folder: Path) -> None:
                save_file(_distinct(learner), folder / WEIGHTS_FILE)
                (folder / JUDGEMENT_FILE).write_text(json.dumps(asdict(judgement)), "utf-8")

            write_folder(self._best, fill, self._made_from)
        self._accelerator.wait_for_everyone()

    @property
    def _checkpoints(self) -> Path:
        return self._folder / CHECKPOINTS_FOLDER

    @property
    def _best(self) -> Path:
        return self._folder / BEST_FOLDER

    def _save(self) -> None:
        """Writes a checkpoint, with the random states of every process and the best drafter."""
        accelerator = self._accelerator
        folder = checkpoint_folder(self._checkpoints, self._progress.update)
        if accelerator.is_main_process:
            begin_folder(folder)
        accelerator.wait_for_everyone()
        partial = partial_folder(folder)
        try:
            accelerator.save_state(str(partial))
        except WRITE_ERRORS as error:
            abandon_folder(folder, error)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            try:
                self._progress.write(partial)
                if self._progress.best is not None:
                    for name, stored in BEST_FILES.items():
                        shutil.copyfile(self._best / name, partial / stored)
                finish_folder(folder, self._made_from)
            except WRITE_ERRORS as error:
                abandon_folder(folder, error)
            remove_old_checkpoints(self._checkpoints)
        accelerator.wait_for_everyone()

    def _resume(self) -> None:
        folder = newest_checkpoint(self._checkpoints, self._reporter.tell)
        if folder is not None:
            record = read_record(folder)
            assert record is not None, "a checkpoint without a record is broken"
            advice = f"delete {self._folder} to start this stage anew, or give it another name"
            check_same(record.made_from, self._made_from, self._checkpoints, advice)
            self._progress = TrainingProgress.read(folder)
            try:
                self._accelerator.load_state(str(folder))
            except Exception as error:
                raise TrainingError(
                    f"the checkpoint {folder} cannot be loaded, though it is whole: {error}; go on "
                    "with the versions of torch and accelerate that wrote it, or delete "
                    f"{self._folder} to start this stage anew"
                ) from error
        if self._accelerator.is_main_process:
            self._restore_best(folder)
        self._accelerator.wait_for_everyone()

    def _restore_best(self, checkpoint: Path | None) -> None:
        """Makes `best` the best drafter as of a checkpoint.

        What is there may be lost, or come from updates after the checkpoint, which are made anew
        and perhaps with other settings.
        """
        if checkpoint is None or self._progress.best is None:
            remove_folder(self._best)
            return
        found, stored = find_folder(self._best), read_record(checkpoint)
        assert stored is not None
        wanted = {name: stored.files.get(BEST_FILES[name]) for name in BEST_FILES}
        if found is not None and find_damage(found) is None:
            record = read_record(found)
            if record is not None and dict(record.files) == wanted:
                return

        def fill(folder: Path) -> None:
            for name, stored in BEST_FILES.items():
                shutil.copyfile(checkpoint / stored, folder / name)

        write_folder(self._best, fill, self._made_from)


def _check_sharded(stage: LearningStage) -> None:
    """Raises InvalidInputError for what needs whole weights, which FSDP shares out."""
    if stage.optimizer == "muon":
        raise InvalidInputError('FSDP cuts matrices, which Muon needs whole; choose "adamw"')
    if isinstance(stage, DistilStage) and stage.rollout_tokens:
        raise InvalidInputError("FSDP shares out weights, which rollouts need whole; leave one out")


def _plan(
    texts: Texts, learned: Sequence[int], stage: LearningStage, seed: int
) -> list[list[list[int]]]:
    """Returns all updates of a stage, each a list of passes."""
    updates: list[list[list[int]]] = []
    for epoch in range(stage.epochs):
        if stage.max_updates is not None and len(updates) >= stage.max_updates:
            break
        order = seed * EPOCHS_PER_SEED + epoch
        updates += epoch_updates(texts, learned, stage.batch_tokens, stage.pass_tokens, order)
    return updates[: stage.max_updates]


def _spread(indices: Sequence[int], most: int) -> list[int]:
    """Returns at most so many of some indices, at about equal distances."""
    count = min(most, len(indices))
    return [indices[number * len(indices) // count] for number in range(count)]


def _distinct(state: Mapping[str, Float[Tensor, "..."]]) -> dict[str, Float[Tensor, "..."]]:
    """Leaves out tensors that share their memory with an earlier one, as tied weights do."""
    by_address: dict[int, str] = {}
    for name, tensor in state.items():
        by_address.setdefault(tensor.data_ptr(), name)
    return {name: state[name].contiguous() for name in by_address.values()}
