"""The training loop: updates, judgements, checkpoints; and how a run that ended goes on."""

import json
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
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
from treesnake.training.checkpoints import (
    WRITE_ERRORS,
    abandon_folder,
    begin_folder,
    checkpoint_folder,
    finish_folder,
    newest_checkpoint,
    partial_folder,
    remove_old_checkpoints,
    write_folder,
)
from treesnake.training.held_out import Judgement, calibration_error, emitted_tokens
from treesnake.training.lesson import Lesson, Marks
from treesnake.training.optimizers import learning_rate, new_optimizers
from treesnake.training.recipe import LearningStage
from treesnake.training.reporting import Reporter
from treesnake.training.texts import Batch, Texts, cut_passes, epoch_updates

EPOCHS_PER_SEED = 100_003
"""So that no two seeds have an order of texts in common."""

BEST_FOLDER = "best"
CHECKPOINTS_FOLDER = "checkpoints"
POSITION_FILE = "position.json"
WEIGHTS_FILE = "weights.safetensors"
JUDGEMENT_FILE = "judgement.json"


@dataclass(frozen=True)
class Evaluation:
    """How far training was, and what the drafter was worth then.

    Attributes:
        update: how many updates there had been.
        num_tokens: tokens that had been run, prompts included.
        seconds_s: that training had taken.
        training_loss: its mean since the evaluation before.
        judgement: on held-out text.
    """

    update: int
    num_tokens: int
    seconds_s: float
    training_loss: float
    judgement: Judgement


@dataclass
class Position:
    """Where a run stands; what the weights and the optimizers do not say.

    Attributes:
        fingerprint: of all that the run's result depends on.
        update: how many updates are done.
        num_tokens: that were run.
        seconds_s: that they took.
        recent_losses: of the updates since the last evaluation.
        evaluations: all so far.
    """

    fingerprint: str
    update: int = 0
    num_tokens: int = 0
    seconds_s: float = 0.0
    recent_losses: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the most tokens a step; of equal ones the earliest."""
        return max(self.evaluations, key=_tokens_per_step, default=None)

    @classmethod
    def read(cls, path: Path) -> "Position":
        """Reads what `json.dumps(asdict(position))` wrote."""
        stored = json.loads(path.read_text("utf-8"))
        evaluations = [
            Evaluation(**(each | {"judgement": Judgement(**each["judgement"])}))
            for each in stored.pop("evaluations")
        ]
        return cls(**stored, evaluations=evaluations)


def _tokens_per_step(evaluation: Evaluation) -> float:
    return evaluation.judgement.tokens_per_step


class Trainer:
    """One learning stage.

    Args:
        stage: what the recipe says of it.
        lesson: the learner and its objective.
        texts: to learn from.
        folder: of the stage; it gets `checkpoints` and `best`.
        fingerprint: of the recipe; a run goes on only with what it began with.
        seed: of the order of the texts.
        accelerator: this process's part of the run.
        reporter: is told how it goes.
        target: runs along where its probabilities are not stored.
    """

    def __init__(
        self,
        stage: LearningStage,
        lesson: Lesson,
        texts: Texts,
        folder: Path,
        fingerprint: str,
        seed: int,
        accelerator: Accelerator,
        reporter: Reporter,
        target: PreTrainedModel | None = None,
    ) -> None:
        self._stage = stage
        self._texts = texts
        self._folder = folder
        self._accelerator = accelerator
        self._reporter = reporter
        self._target = target
        learned, held_out = texts.split(stage.held_out)
        if not learned or not held_out:
            raise InvalidInputError(
                f'the stage "{stage.name}" has {len(learned)} texts to learn from and '
                f"{len(held_out)} that are held out; add data, or change held_out"
            )
        self._held_out = sorted(held_out[: stage.max_held_out], key=lambda i: texts.lengths[i])
        self._updates = _plan(texts, learned, stage, seed)
        self._position = Position(f"{fingerprint}-{len(texts)}-{sum(texts.lengths)}")
        optimizers = new_optimizers(lesson.learner, stage)
        if accelerator.distributed_type is DistributedType.FSDP and stage.optimizer == "muon":
            raise InvalidInputError('FSDP cuts matrices, which Muon needs whole; choose "adamw"')
        prepared = accelerator.prepare(lesson, *optimizers)
        self._lesson: Any = prepared[0]
        self._optimizers: Sequence[Optimizer] = prepared[1:]

    @property
    def evaluations(self) -> Sequence[Evaluation]:
        """All evaluations so far."""
        return self._position.evaluations

    def run(self) -> Evaluation:
        """Trains to the end, from the newest checkpoint if there is one; returns the best.

        Raises:
            TrainingError: if the loss is no number, or nothing can be written.
            InvalidInputError: if the checkpoints are of another recipe or other data.
        """
        self._resume()
        num_updates = len(self._updates)
        self._reporter.begin(self._stage.name, self._position.update, num_updates)
        try:
            while self._position.update < num_updates:
                self._update()
                is_last = self._position.update == num_updates
                if is_last or self._position.update % self._stage.evaluate_every == 0:
                    self._evaluate()
                if is_last or self._position.update % self._stage.checkpoint_every == 0:
                    self._save()
        finally:
            self._reporter.end()
        best = self._position.best
        assert best is not None
        return best

    def judge(self) -> Judgement:
        """Judges the learner as it is on the texts that are held out, in every process alike."""
        columns = []
        is_right: list[list[bool]] = []
        self._lesson.eval()
        for part in cut_passes([self._texts.lengths[i] for i in self._held_out], self._pass_tokens):
            indices = [self._held_out[place] for place in part]
            with torch.no_grad():
                columns.append(self._mark(self._texts.batch(indices)).float().cpu())
            counts = [self._texts.num_learned([index]) for index in indices]
            right = Marks.of(columns[-1]).is_right.split(counts)
            is_right += [(each > 0).tolist() for each in right]
        self._lesson.train()
        marks = Marks.of(torch.cat(columns))
        steps = [emitted_tokens(each, self._stage.draft_length) for each in is_right]
        return Judgement(
            num_texts=len(is_right),
            num_tokens=len(marks.loss),
            loss=float(marks.loss.mean()),
            agreement=float(marks.is_right.mean()),
            tokens_per_step=sum(map(sum, steps)) / sum(map(len, steps)),
            calibration_error=calibration_error(marks.confidence, marks.is_right),
        )

    @property
    def _pass_tokens(self) -> int:
        return self._stage.pass_tokens

    def _update(self) -> None:
        started = time.monotonic()
        position, accelerator = self._position, self._accelerator
        rate = learning_rate(self._stage, position.update, len(self._updates))
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        passes = self._updates[position.update]
        indices = [index for part in passes for index in part]
        num_learned = self._texts.num_learned(indices)
        loss, agreement = (self._backward(passes) / num_learned).tolist()
        norm = accelerator.clip_grad_norm_(self._lesson.parameters(), self._stage.clip_norm)
        self._check_finite(loss, float(norm) if norm is not None else 0.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        num_tokens = sum(self._texts.lengths[index] for index in indices)
        position.update += 1
        position.num_tokens += num_tokens
        position.recent_losses.append(loss)
        elapsed = time.monotonic() - started
        position.seconds_s += elapsed
        facts = {"loss": loss, "agreement": agreement, "tokens/s": num_tokens / elapsed}
        if position.evaluations:
            facts["tokens/step"] = position.evaluations[-1].judgement.tokens_per_step
        self._reporter.advance(1, facts)
        accelerator.log(facts | {"learning rate": rate}, step=position.update)

    def _backward(self, passes: Sequence[Sequence[int]]) -> Float[Tensor, "2"]:
        """Adds up the gradients of all passes; returns the sums of losses and of right guesses.

        Each process has its share of the passes, all have equally many, and those that are left
        over learn nothing.
        """
        accelerator = self._accelerator
        world, rank = accelerator.num_processes, accelerator.process_index
        num_learned = self._texts.num_learned(index for part in passes for index in part)
        num_rounds = -(-len(passes) // world)
        sums = torch.zeros(2, device=accelerator.device)
        for round_ in range(num_rounds):
            place = round_ * world + rank
            batch = self._texts.batch(passes[min(place, len(passes) - 1)])
            if place >= len(passes):
                batch = batch.without_places()
            is_last = round_ == num_rounds - 1
            with nullcontext() if is_last else accelerator.no_sync(self._lesson):
                marks = Marks.of(self._mark(batch))
                # Gradients of processes are averaged, and are to be summed.
                accelerator.backward(marks.loss.sum() * (world / num_learned))
            sums += torch.stack([marks.loss.detach().sum(), marks.is_right.sum().detach()])
        return accelerator.reduce(sums, "sum")

    def _mark(self, batch: Batch) -> Float[Tensor, "places 3"]:
        batch = batch.to(self._accelerator.device)
        logits = None
        if self._target is not None:
            with torch.no_grad():
                logits = self._target(input_ids=batch.tokens, use_cache=False).logits
                logits = logits.flatten(0, 1)[batch.places]
        return self._lesson(batch, logits)

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        stage, update = self._stage, self._position.update
        raise TrainingError(
            f'the loss of the stage "{stage.name}" is {loss} at update {update + 1}, the norm of '
            f"its gradient {norm}; checkpoints from before are in {self._checkpoints}. Try a "
            f"learning_rate of {stage.learning_rate / 3:.2g}, a longer warmup, a smaller "
            'clip_norm, or precision = "float32"'
        )

    def _evaluate(self) -> None:
        position = self._position
        best = position.best
        judgement = self.judge()
        evaluation = Evaluation(
            position.update,
            position.num_tokens,
            position.seconds_s,
            sum(position.recent_losses) / len(position.recent_losses),
            judgement,
        )
        position.evaluations.append(evaluation)
        position.recent_losses = []
        is_best = best is None or judgement.tokens_per_step > _tokens_per_step(best)
        if is_best:
            self._write_best(judgement)
        numbers = {name: value for name, value in asdict(judgement).items() if name[:3] != "num"}
        self._accelerator.log(
            {f"held out/{name}": value for name, value in numbers.items()}, step=position.update
        )
        self._reporter.tell(
            f"update {position.update}, {position.num_tokens:,} tokens: "
            f"{judgement.tokens_per_step:.3f} tokens/step, agreement {judgement.agreement:.1%}, "
            f"loss {judgement.loss:.3f}{', the best so far' if is_best else ''}"
        )

    def _write_best(self, judgement: Judgement) -> None:
        state = self._accelerator.get_state_dict(self._lesson)  # gathered by all processes
        if self._accelerator.is_main_process:
            learner = {name.removeprefix("learner."): each for name, each in state.items()}

            def fill(folder: Path) -> None:
                save_file(_distinct(learner), folder / WEIGHTS_FILE)
                (folder / JUDGEMENT_FILE).write_text(json.dumps(asdict(judgement)), "utf-8")

            write_folder(self._folder / BEST_FOLDER, fill)
        self._accelerator.wait_for_everyone()

    @property
    def _checkpoints(self) -> Path:
        return self._folder / CHECKPOINTS_FOLDER

    def _save(self) -> None:
        """Writes a checkpoint, with the random states of every process."""
        accelerator = self._accelerator
        folder = checkpoint_folder(self._checkpoints, self._position.update)
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
                (partial / POSITION_FILE).write_text(json.dumps(asdict(self._position)), "utf-8")
                finish_folder(folder)
            except WRITE_ERRORS as error:
                abandon_folder(folder, error)
            remove_old_checkpoints(self._checkpoints)
        accelerator.wait_for_everyone()

    def _resume(self) -> None:
        folder = newest_checkpoint(self._checkpoints, self._reporter.tell)
        if folder is None:
            return
        position = Position.read(folder / POSITION_FILE)
        if position.fingerprint != self._position.fingerprint:
            raise InvalidInputError(
                f"{self._checkpoints} was begun with another recipe, seed or data; delete it to "
                "start this stage anew, or choose another output folder"
            )
        self._accelerator.load_state(str(folder))
        self._position = replace(position)


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


def _distinct(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leaves out tensors that share their memory with an earlier one, as tied weights do."""
    pointers = [tensor.data_ptr() for tensor in state.values()]
    seen = {name: pointers.index(tensor.data_ptr()) for name, tensor in state.items()}
    return {
        name: state[name].contiguous()
        for index, name in enumerate(state)
        if seen[name] == index or not state[name].numel()
    }
