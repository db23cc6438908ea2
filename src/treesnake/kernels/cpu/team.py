"""Threads that run one compiled function together, from the first layer to the last.

A network of many small layers needs hundreds of parallel steps per token, each a fraction of a
millisecond. numba's `prange` wakes and joins its threads at every step. Here a function is entered
once on every thread; inside, threads take units of work from a counter (`take`) and meet at the end
of a step (`meet`), which costs well under a microsecond. Who computes a unit never matters for its
result, so a thread that the system holds up just takes fewer of them.

Why not one of numba's threading layers: OpenMP's idle threads spin and collapse when several
programs share the cores, and torch brings another OpenMP runtime; TBB is rarely installed;
"workqueue" aborts the process when two Python threads use it at once. These are plain Python
threads that sleep between calls, as many as `torch.get_num_threads()` says, under one lock.
"""

import os
import platform
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.jit import kernel

SPINS = 2000
"""How often a waiting thread looks before it gives its core to others: some 50 microseconds."""

_TAKEN, _ARRIVED, _ABORTED = 0, 1, 2
_FIELDS = 8
_yield_core = types.ExternalFunction(
    "SwitchToThread" if platform.system() == "Windows" else "sched_yield", types.int32()
)


def new_steps(num_steps: int) -> np.ndarray:
    """Returns fresh counters for the steps of one call, each on a cache line of its own.

    Counters are never reset: a slow thread may still look at those of the call before.
    """
    return np.zeros((num_steps, _FIELDS), np.int64)


def _counter_pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Builds the address of `steps[step, field]` from the first three arguments."""
    steps = context.make_array(signature.args[0])(context, builder, arguments[0])
    offset = builder.mul(arguments[1], simd.index(_FIELDS))
    return builder.gep(steps.data, [builder.add(offset, arguments[2])])


@intrinsic
def _fetch_add(typing_context, steps, step, field):
    def generate(context, builder, signature, arguments):
        pointer = _counter_pointer(context, builder, signature, arguments)
        return builder.atomic_rmw("add", pointer, simd.index(1), "acq_rel")

    return types.int64(steps, types.intp, types.intp), generate


@intrinsic
def _look(typing_context, steps, step, field):
    def generate(context, builder, signature, arguments):
        pointer = _counter_pointer(context, builder, signature, arguments)
        return builder.load_atomic(pointer, "acquire", align=8)

    return types.int64(steps, types.intp, types.intp), generate


@intrinsic
def _pause(typing_context):
    """Tells an x86 core that it is waiting; does nothing on others."""

    def generate(context, builder, signature, arguments):
        if platform.machine().lower() in ("x86_64", "amd64"):
            pause = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"
            )
            builder.call(pause, [])
        return context.get_dummy_value()

    return types.void(), generate


@kernel
def take(steps, step):
    """Returns the number of a unit of this step that no other thread has taken, counted from 0."""
    return _fetch_add(steps, step, _TAKEN)


@kernel
def meet(steps, step, team_size):
    """Waits until every thread of the team has ended this step; returns the next one."""
    if team_size > 1:
        _fetch_add(steps, step, _ARRIVED)
        spins = 0
        while _look(steps, step, _ARRIVED) < team_size:
            spins += 1
            if spins < SPINS:
                _pause()
            else:
                _yield_core()
                if _look(steps, 0, _ABORTED) != 0:
                    break
    return step + 1


class Team:
    """Threads that wait to run a function together; the calling thread is one of them.

    A team runs one function at a time: concurrent calls wait for each other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: list[queue.SimpleQueue[Any]] = []
        self._compiled: set[Any] = set()

    def run(self, function: Callable[..., None], num_steps: int, *arguments: Any) -> None:
        """Runs `function(steps, team_size, *arguments)` on `torch.get_num_threads()` threads.

        `function` is an entry point that calls `meet` for the same steps on every thread, the last
        thing it does.
        """
        steps = new_steps(num_steps)
        with self._lock:
            size = torch.get_num_threads()
            jobs = self._hire(size - 1)
            for job in jobs:
                job.put((function, steps, size, arguments))
            try:
                function(steps, size, *arguments)
            except BaseException:
                steps[0, _ABORTED] = 1  # the others must not wait for this thread
                raise

    def _hire(self, number: int) -> list[queue.SimpleQueue[Any]]:
        while len(self._jobs) < number:
            jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
            threading.Thread(target=_work, args=(jobs,), daemon=True, name="treesnake").start()
            self._jobs.append(jobs)
        return self._jobs[:number]


def _work(jobs: "queue.SimpleQueue[Any]") -> None:
    while True:
        function, steps, size, arguments = jobs.get()
        function(steps, size, *arguments)
        del function, steps, size, arguments  # what a sleeping thread holds is not freed


TEAM = Team()


def _renew_after_fork() -> None:
    TEAM.__init__()  # the child has none of its parent's threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_after_fork)
