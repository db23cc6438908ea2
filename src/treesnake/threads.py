"""Threads of others that ours must get along with: torch's, and those that a fork leaves behind.

torch shares an operation on some thousands of numbers among its OpenMP threads, and afterwards they
go on spinning for some 15 ms, on the cores that the compiled pass of a small model needs at once.
Between two passes there are microseconds of such work, and milliseconds to be lost by it.

A process that is forked has the thread that forked and no other. OpenMP waits for ever for the
threads of its pool, and a lock that another thread held stays locked. So a child computes on one
thread, and its locks are free.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

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
        try:
            _set_openmp_threads(1)  # inside: an interrupt right behind it must not leave it so
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

_LOCKS: WeakSet[Any] = WeakSet()


def new_lock() -> threading.Lock:
    """Returns a lock that is free in a child process, whoever held it when that was forked."""
    lock = threading.Lock()
    _LOCKS.add(lock)
    return lock


def new_reentrant_lock() -> "threading.RLock":
    """Returns a lock that its thread may take again, and that is free in a child process."""
    lock = threading.RLock()
    _LOCKS.add(lock)
    return lock


def _begin_child() -> None:
    """Leaves torch one thread, and nobody in the way."""
    for lock in _LOCKS:
        lock._at_fork_reinit()  # as the standard library does with its own
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)
