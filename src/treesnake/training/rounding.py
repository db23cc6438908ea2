"""Linear layers that multiply 8-bit integers, for a target that answers many prompts on a CPU.

A batch of prompts is bound by arithmetic, not by memory, and CPUs multiply 8-bit integers about
four times as fast as float32 numbers where they have instructions for it (VNNI on x86) and many
times slower where they have none, so it is measured first. What the target says changes a little:
good enough to train on, never for decoding.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

LARGEST = 127
SMALLEST_SCALE = 1e-8
"""So that a row of zeros has a scale to be divided by."""

TRIED_SIZE = 512
"""Rows and columns of the matrices that are multiplied to see whether rounding pays."""


class RoundedLinear(nn.Module):
    """A linear layer whose weights and inputs are rounded to 8 bits, row by row.

    Args:
        linear: what it stands in for; its bias stays as it is.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scales = _rounded(linear.weight.detach().float())
        self._weight, self._scales = weight, scales.squeeze(-1)
        self._bias = linear.bias

    def forward(self, inputs: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Returns the products in the dtype of the inputs."""
        rows, scales = _rounded(inputs.flatten(0, -2).float())
        products = torch._int_mm(rows, self._weight.mT).float()
        outputs = products.mul_(scales).mul_(self._scales)
        if self._bias is not None:
            outputs += self._bias
        return outputs.to(inputs.dtype).unflatten(0, inputs.shape[:-1])


def rounding_pays() -> bool:
    """Measures, in some milliseconds, whether this CPU multiplies 8-bit integers the faster."""
    integers = torch.ones(TRIED_SIZE, TRIED_SIZE, dtype=torch.int8)
    floats = integers.float()
    rounded_s = _fastest_s(lambda: torch._int_mm(integers, integers.mT))
    return rounded_s < _fastest_s(lambda: floats @ floats.mT)


@contextmanager
def rounded_to_int8(model: nn.Module) -> Iterator[None]:
    """Lets all linear layers of a model multiply 8-bit integers for a while."""
    linears = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    for name, linear in linears.items():
        model.set_submodule(name, RoundedLinear(linear))
    try:
        yield
    finally:
        for name, linear in linears.items():
            model.set_submodule(name, linear)


def _fastest_s(product: Callable[[], Tensor], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        product()
        times.append(time.perf_counter() - started)
    return min(times)


def _rounded(
    rows: Float[Tensor, "rows columns"],
) -> tuple[Int8[Tensor, "rows columns"], Float[Tensor, "rows 1"]]:
    scales = rows.abs().amax(-1, keepdim=True).clamp_min(SMALLEST_SCALE) / LARGEST
    return (rows / scales).round_().to(torch.int8), scales
