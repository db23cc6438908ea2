"""When torch's threads on a CPU are better left asleep.

torch shares an operation on some thousands of numbers among its OpenMP threads, and afterwards they
go on spinning for some 15 ms, on the cores that the compiled pass of a small model needs at once.
Between two passes there are microseconds of such work, and milliseconds to be lost by it.
"""

import ctypes
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def on_one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a function's operations of torch on a CPU run on the calling thread alone.

    Nothing changes for other threads of the program, nor on other devices. Compiled passes take as
    many threads as torch has, so they do not belong into such a function.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        num_threads = torch.get_num_threads()
        if num_threads == 1 or _set_openmp_threads is None:
            return function(*args, **kwargs)
        _set_openmp_threads(1)
        try:
            return function(*args, **kwargs)
        finally:
            _set_openmp_threads(num_threads)

    return run


def c_function(name: str) -> Callable[..., Any] | None:
    """Returns a function of the C libraries that this process has loaded, if they have it."""
    try:
        return ctypes.CDLL(None)[name]
    except (OSError, TypeError, AttributeError):
        return None


_set_openmp_threads = c_function("omp_set_num_threads")
"""OpenMP's setting for the calling thread, if torch brought an OpenMP along."""
