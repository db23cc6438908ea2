"""Optimizers, and the learning rate as a function of the number of updates."""

import math

from torch import nn
from torch.optim import AdamW, Optimizer

from treesnake.training.learner import Learner
from treesnake.training.muon import Muon, fused_parts
from treesnake.training.training_recipe import LearningStage

BETAS = (0.9, 0.98)
"""Of AdamW: texts are few and steps many, so the second moment forgets faster than by default."""


def new_optimizers(learner: Learner, stage: LearningStage) -> list[Optimizer]:
    """Returns what updates a learner: matrices of its layers, and all else.

    Vectors, convolutions and rates are not drawn to zero. Updates by Muon have the size of AdamW's,
    so that one learning rate serves both.
    """
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    tables = {id(learner.embeddings), id(learner.output_weight)}
    matrices = [each for each in trained if each.ndim == 2 and id(each) not in tables]
    embeddings = [each for each in trained if id(each) in tables]
    others = [each for each in trained if each.ndim != 2]
    rate, decay = stage.learning_rate, stage.weight_decay
    if stage.optimizer == "muon":
        rest = _groups((others, 0.0), (embeddings, decay))
        muon = Muon(matrices, fused_parts(learner), lr=rate, weight_decay=decay)
        return [muon, AdamW(rest, lr=rate, betas=BETAS)]
    groups = _groups((others, 0.0), (embeddings + matrices, decay))
    return [AdamW(groups, lr=rate, betas=BETAS)]


def _groups(*groups: tuple[list[nn.Parameter], float]) -> list[dict[str, object]]:
    return [
        {"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters
    ]


def learning_rate(stage: LearningStage, update: int, num_updates: int) -> float:
    """Returns the learning rate of an update, which are counted from 0.

    It rises in a line, and falls as a cosine to `final_rate` of the highest.
    """
    warmup = round(stage.warmup * num_updates)
    if update < warmup:
        return stage.learning_rate * (update + 1) / (warmup + 1)
    done = (update - warmup) / max(num_updates - warmup, 1)
    falling = (1 + math.cos(math.pi * done)) / 2
    return stage.learning_rate * (stage.final_rate + (1 - stage.final_rate) * falling)
