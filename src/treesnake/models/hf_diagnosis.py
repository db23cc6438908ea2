"""Where a model breaks: a weight that is no number, or the first layer whose output is none."""

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from treesnake.errors import BrokenModelError


def broken_model_error(model: nn.Module, rerun: Callable[[], object]) -> BrokenModelError:
    """Returns the error for a model that gave logits which are no numbers.

    Looks through all weights, and if they are sound runs the model once more and listens to each
    of its modules.

    Args:
        model: the model.
        rerun: the forward pass that went wrong.
    """
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    tensor = _first_broken_tensor(model)
    if tensor is not None:
        return BrokenModelError(
            f"the model's weights are broken: {tensor} holds values that are no finite numbers; "
            "fetch or convert the checkpoint again"
        )
    module = _first_broken_module(model, rerun)
    where = f"{module} is the first whose output is not finite" if module else "its input is sound"
    return BrokenModelError(
        f"the model's logits are no numbers although its weights are: {where}; {dtype} is probably "
        "too narrow for it, load it in bfloat16 or float32"
    )


def _first_broken_tensor(model: nn.Module) -> str | None:
    for name, tensor in model.named_parameters():
        is_here = tensor.is_floating_point() and not tensor.is_meta  # not offloaded, nor packed
        if is_here and not bool(tensor.isfinite().all()):
            return name
    return None


def _first_broken_module(model: nn.Module, rerun: Callable[[], object]) -> str | None:
    """Returns the name of the first module to finish with an output that is not finite.

    Other threads may run the same model meanwhile; what they do is not listened to.
    """
    thread = threading.get_ident()
    broken: list[str] = []

    def listen_to(name: str) -> Callable[[nn.Module, object, object], None]:
        def listen(module: nn.Module, inputs: object, output: object) -> None:
            if threading.get_ident() == thread and not broken and not _is_finite(output):
                broken.append(name)

        return listen

    handles = [
        module.register_forward_hook(listen_to(name))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            rerun()
    finally:
        for handle in handles:
            handle.remove()
    return broken[0] if broken else None


def _is_finite(output: object) -> bool:
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(output.isfinite().all())
    if isinstance(output, (tuple, list)):
        return all(_is_finite(part) for part in output)
    return True
