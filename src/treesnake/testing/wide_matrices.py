"""Random weights of tiny models, wide enough for faults to show and for texts that vary."""

from typing import TypeVar

import torch

Module = TypeVar("Module", bound=torch.nn.Module)


def with_wide_matrices(model: Module, *, deviation: float = 0.3, seed: int = 0) -> Module:
    """Draws all matrices of a model anew, about ten times as wide as usual; returns the model.

    Args:
        model: changed in place, and set to evaluation mode.
        deviation: the standard deviation.
        seed: which numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, deviation, generator=generator)
    return model.eval()
