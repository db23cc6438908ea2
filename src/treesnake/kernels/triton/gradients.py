"""Gradients of kernels that have a forward pass only, from their readable reference."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Kernel = Callable[..., Any]


class _Recomputed(Function):
    """Runs one function forwards; goes backwards through another that equals it."""

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any, kernel: Kernel, reference: Kernel, *tensors: Any
    ) -> Any:
        ctx.reference = reference
        ctx.save_for_backward(*tensors)
        return kernel(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        inputs = [
            None if tensor is None else tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        with torch.enable_grad():
            outputs = ctx.reference(*inputs)
        wanted = [part for part in inputs if part is not None and part.requires_grad]
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        grads = iter(torch.autograd.grad(outputs, wanted, grad_outputs, allow_unused=True))
        return (
            None,
            None,
            *(next(grads) if part is not None and part.requires_grad else None for part in inputs),
        )


def with_gradient_of(reference: Kernel, kernel: Kernel, *tensors: Tensor | None) -> Any:
    """Returns `kernel(*tensors)`, differentiable as `reference(*tensors)` is."""
    return _Recomputed.apply(kernel, reference, *tensors)
