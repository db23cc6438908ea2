"""Threads that run one compiled function together, from the first layer to the last.

A network of many small layers has hundreds of parallel steps per token, each a fraction of a
millisecond. numba's `prange` wakes and joins its threads at every step. Here a function is entered
once on every thread. Inside, threads take numbered units of a step until none is left, finish
each, and `wait` until all are finished, which costs well under a microsecond:

    unit = next_unit(barrier, step)
    while unit < num_units:
        ...
        unit = finish_unit(barrier, step)
    step = wait(barrier, step, num_units)

What is written inside a unit is seen by all after `wait`; nothing may be written outside of units.
A thread waits for units, not for threads: one that the system holds up, or that never came, is in
nobody's way unless it holds a unit, so that other programs on the same cores cost their share of
the time and no more.

Why not one of numba's threading layers: OpenMP's idle threads spin, its barriers collapse when
cores are shared, and torch brings another OpenMP runtime; TBB is rarely installed; "workqueue"
aborts the process when two Python threads use it at once. These are plain Python threads that sleep
between calls, as many as `torch.get_num_threads()` says.
"""

import os
import platform
import queue
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from treesnake.clock import book_wait
from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.jit import kernel

PATIENCE = 2000
"""How often a waiting thread looks before it gives its core to others: some 50 microseconds."""

_TAKEN, _FINISHED, _ENTERED = 0, 1, 2
_FIELDS = 8  # a cache line
_yield_core = types.ExternalFunction(
    "SwitchToThread" if platform.system() == "Windows" else "sched_yield", types.int32()
)


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


class Barrier(NamedTuple):
    """What the threads of one call share: counters for each step, and how many threads there are.

    Counters are never reset: a late thread may still look at those of a call that has ended.
    """

    steps: np.ndarray
    size: int


@kernel
def enter(barrier):
    """Returns the number of this thread, counted from 0; called once, at the start."""
    return _fetch_add(barrier.steps, 0, _ENTERED)


@kernel
def next_unit(barrier, step):
    """Returns the number of a unit of this step that no other thread has, counted from 0."""
    return _fetch_add(barrier.steps, step, _TAKEN)


@kernel
def finish_unit(barrier, step):
    """Declares the unit that was taken last as finished and takes the next."""
    _fetch_add(barrier.steps, step, _FINISHED)
    return next_unit(barrier, step)


@kernel
def wait(barrier, step, num_units):
    """Waits until all units of this step are finished; returns the next step."""
    looks = 0
    while _look(barrier.steps, step, _FINISHED) < num_units:
        looks += 1
        if looks < PATIENCE:
            _pause()
        else:
            _yield_core()
    return step + 1


class ThreadTeam:
    """Threads that wait to run a function together; the calling thread is one of them.

    A team runs one function at a time: concurrent calls wait for each other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: list[queue.SimpleQueue[Any]] = []

    def run(self, function: Callable[..., None], num_steps: int, *arguments: Any) -> None:
        """Runs `function(barrier, *arguments)` on `torch.get_num_threads()` threads.

        `function` is an entry point of at most `num_steps` steps. When this returns, all units are
        finished.
        """
        asked = perf_counter()
        with self._lock:
            book_wait(asked)
            barrier = Barrier(np.zeros((num_steps, _FIELDS), np.int64), torch.get_num_threads())
            try:
                for jobs in self._hire(barrier.size - 1):
                    jobs.put((function, barrier, arguments))
                function(barrier, *arguments)
            except KeyboardInterrupt:  # between two instructions of Python, not inside
                function(barrier, *arguments)  # others may be at it, and must not be left alone
                raise

    def _hire(self, number: int) -> list["queue.SimpleQueue[Any]"]:
        while len(self._jobs) < number:
            jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
            threading.Thread(target=_work, args=(jobs,), daemon=True, name="treesnake").start()
            self._jobs.append(jobs)
        return self._jobs[:number]


def _work(jobs: "queue.SimpleQueue[Any]") -> None:
    while True:
        function, barrier, arguments = jobs.get()
        function(barrier, *arguments)
        del function, barrier, arguments  # what a sleeping thread holds is not freed


TEAM = ThreadTeam()


def _renew_after_fork() -> None:
    TEAM.__init__()  # the child has none of its parent's threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_after_fork)
