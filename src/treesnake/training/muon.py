"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal before they are added.

torch has an own since 2.9. It rounds to bfloat16, which CPUs compute many times slower than
float32, and it takes a matrix for one map. What a Mamba projects its input to at once are several:
gate, x and the rest get an orthogonal update each.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from treesnake.training.learner import Learner

MOMENTUM = 0.95
NUM_ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that pushes singular values towards 1; five times suffice for any matrix."""

UPDATE_SIZE = 0.2
"""The root mean square of an update, about that of AdamW (Liu et al. 2025)."""


class Muon(Optimizer):
    """Updates matrices.

    Args:
        parameters: matrices.
        parts: for matrices that are several maps, by id, how many rows each has.
        lr: the learning rate; one that fits AdamW fits here.
        weight_decay: decoupled from the gradient.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        parts: Mapping[int, Sequence[int]],
        lr: float,
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self._parts = parts

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyrefly: ignore[bad-override]
        """Updates all matrices that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            learned = [each for each in group["params"] if each.grad is not None]
            owners = shared_out([each.numel() for each in learned], _num_processes())
            updates = [
                self._update(parameter, is_ours=owner == _process_index())
                for parameter, owner in zip(learned, owners, strict=True)
            ]
            for parameter, update, owner in zip(learned, updates, owners, strict=True):
                if _num_processes() > 1:
                    distributed.broadcast(update, owner)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"])

    def _update(self, parameter: nn.Parameter, *, is_ours: bool) -> Float[Tensor, "rows columns"]:
        """Returns the update, or room for that of another process; the momentum is everybody's."""
        assert parameter.grad is not None
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        if not is_ours:
            return torch.empty_like(parameter)
        update = parameter.grad.lerp(state["momentum"], MOMENTUM)
        rows = self._parts.get(id(parameter), [len(update)])
        parts = [orthogonal(part) for part in update.split(list(rows))]
        return torch.cat(parts).to(parameter.dtype)


def shared_out(sizes: Sequence[int], num_processes: int) -> list[int]:
    """Returns which process makes which matrix orthogonal, so that all have about as much to do."""
    loads = [0] * num_processes
    owners = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += sizes[index]
    return owners


def _num_processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _process_index() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def orthogonal(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Returns nearly the closest matrix with equal singular values, of the size of an update.

    The singular values come out between about 0.7 and 1.2 times each other.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if is_tall else matrix
    wide = wide.to(torch.float32 if matrix.device.type == "cpu" else torch.bfloat16)
    wide = wide / (wide.norm() + 1e-7)
    first, third, fifth = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = wide @ wide.T
        wide = first * wide + (third * gram + fifth * gram @ gram) @ wide
    return (wide.T if is_tall else wide) * (UPDATE_SIZE * math.sqrt(max(matrix.shape)))


def fused_parts(learner: Learner) -> dict[int, list[int]]:
    """Returns, by the ids of projections that are several maps, how many rows each of them has."""
    parts = {}
    for name, parameter in learner.named_parameters():
        if name.endswith("mixer.in_proj.weight"):
            channels = learner.num_channels
            sizes = [channels, channels, len(parameter) - 2 * channels]
            parts[id(parameter)] = [size for size in sizes if size]
    return parts
