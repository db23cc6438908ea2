"""What moves between host and device while both go on.

A GPU does what it is asked for later, in order. Whoever looks at a result waits for all of that,
and so does a copy to the device from memory that the system may move. A step of decoding is short:
it looks once at what was drafted, and once at what was accepted.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def sent(numbers: Sequence[int], device: torch.device) -> Int[Tensor, " numbers"]:
    """Returns numbers on a device, which takes them when it comes to them."""
    values = torch.tensor(numbers, dtype=torch.int64)
    if device.type == "cuda" and torch.cuda.is_available():
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def fetched(values: Shaped[Tensor, "..."]) -> Callable[[], Shaped[Tensor, "..."]]:
    """Returns what gives values on the host; it waits for them if nobody has waited meanwhile."""
    if values.device.type != "cuda":
        return values.cpu
    copy = values.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(values.device))

    def wait() -> Tensor:
        arrived.synchronize()
        return copy

    return wait
