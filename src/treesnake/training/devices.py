"""One process or many, on CPUs or GPUs: Hugging Face Accelerate knows which.

`accelerate launch -m treesnake train RECIPE.toml` starts as many processes as it was told to;
started plainly there is one, on the best device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env

from treesnake.threads import c_function

COLLECTION_TIMEOUT = timedelta(hours=24)
"""How long processes wait for the one that collects a corpus."""

MALLOC_OPTIONS = {-4: 0, -1: -1}
"""Settings of glibc's allocator: M_MMAP_MAX, no blocks of their own; M_TRIM_THRESHOLD, never."""


def new_accelerator(
    precision: Literal["auto", "float32", "bfloat16"], log_folder: Path | None = None
) -> Accelerator:
    """Returns this process's part of the run.

    Args:
        precision: of matrix products; "auto" is bfloat16 on GPUs that have it. For a CPU see
            `rounded_products`.
        log_folder: where TensorBoard finds its logs; None for no logs.
    """
    has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    is_asked_for = precision == "bfloat16" or (precision == "auto" and has_bfloat16)
    is_mixed = is_asked_for and not _is_on_cpu()
    return Accelerator(
        mixed_precision="bf16" if is_mixed else "no",
        log_with=None if log_folder is None else "tensorboard",
        project_dir=log_folder,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTION_TIMEOUT)],
    )


@contextmanager
def rounded_products(precision: Literal["auto", "float32", "bfloat16"]) -> Iterator[None]:
    """Lets a CPU round the factors of its matrix products to bfloat16, if that is asked for.

    CPUs with matrix units (AMX) then multiply several times faster; sums and all else stay float32.
    Others go on in float32.
    """
    before = torch.get_float32_matmul_precision()
    if precision == "bfloat16" and _is_on_cpu():
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _is_on_cpu() -> bool:
    """Tells whether Accelerate trains on a CPU, before it has begun."""
    return not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def keep_memory() -> bool:
    """Lets this process keep the memory that it frees, for the next tensors; returns whether.

    A pass of training makes and drops tensors of many megabytes. glibc's allocator gives each back
    to the system, which hands the next one out in pages that it fills with zeros first: on a CPU
    that is much of the time of a small network's pass. Only glibc has these settings.
    """
    set_option = c_function("mallopt")
    return set_option is not None and all(
        set_option(option, value) == 1 for option, value in MALLOC_OPTIONS.items()
    )
