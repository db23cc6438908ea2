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

The thread that calls leaves the arguments, unpacked, and the address of the compiled function on
the team's *board*. The others watch the board for a millisecond after each call, in compiled code
and without the interpreter's lock, so that they begin within a microsecond; a thread that had to be
woken, to take the lock and to unpack the arguments would begin a tenth of a millisecond late. After
that they sleep.

Why not one of numba's threading layers: OpenMP's idle threads spin, its barriers collapse when
cores are shared, and torch brings another OpenMP runtime; TBB is rarely installed; "workqueue"
aborts the process when two Python threads use it at once. There are as many threads as
`torch.get_num_threads()` says.
"""

import os
import platform
import queue
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaTypeError
from numba.extending import intrinsic

from treesnake.clock import book_wait
from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.compilation import compile_apart
from treesnake.kernels.cpu.jit import entry_point, kernel

PATIENCE = 2000
"""How often a waiting thread looks before it gives its core to others: some 50 microseconds."""

LINGER = 4000
"""How often a thread looks for the next call before it sleeps: about a millisecond."""

NUM_SLOTS = 32
"""Calls whose arguments the board holds: a thread that is late may still read those of the last."""

MOST_BYTES = 1 << 14
"""The most that the arguments of a call may take."""

ROOM = 2
"""Counters that a call has for each step that it says: more steps are seen before they do harm."""

_FIELDS = 8  # a cache line
_TAKEN, _FINISHED, _ENTERED = 0, 1, 2
_OPEN = 0
_INSIDE, _CODE, _DATA, _HELPERS = 0, 1, 2, 3
_yield_core = types.ExternalFunction(
    "SwitchToThread" if platform.system() == "Windows" else "sched_yield", types.int32()
)


def _field_pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Builds the address of `lines[line, field]` from the first three arguments."""
    lines = context.make_array(signature.args[0])(context, builder, arguments[0])
    offset = builder.mul(arguments[1], simd.index(_FIELDS))
    return builder.gep(lines.data, [builder.add(offset, arguments[2])])


@intrinsic
def _fetch_add(typing_context, lines, line, field, number):
    """Adds a number to a field of all threads; returns what was there."""

    def generate(context, builder, signature, arguments):
        pointer = _field_pointer(context, builder, signature, arguments)
        return builder.atomic_rmw("add", pointer, arguments[3], "seq_cst")

    return types.int64(lines, types.intp, types.intp, types.int64), generate


@intrinsic
def _look(typing_context, lines, line, field):
    """Returns a field of all threads."""

    def generate(context, builder, signature, arguments):
        pointer = _field_pointer(context, builder, signature, arguments)
        return builder.load_atomic(pointer, "seq_cst", align=8)

    return types.int64(lines, types.intp, types.intp), generate


@intrinsic
def _show(typing_context, lines, line, field, number):
    """Writes a field of all threads."""

    def generate(context, builder, signature, arguments):
        pointer = _field_pointer(context, builder, signature, arguments)
        builder.store_atomic(arguments[3], pointer, "seq_cst", align=8)
        return context.get_dummy_value()

    return types.void(lines, types.intp, types.intp, types.int64), generate


@intrinsic
def _leave(typing_context, address, barrier, arguments, function):
    """Writes arguments to an address; returns that of code that calls a function with them.

    Raises:
        NumbaTypeError: if they take more than `MOST_BYTES`.
    """
    all_types = (barrier, *arguments.types)
    call = function.get_call_type(typing_context, all_types, {})

    def generate(context, builder, signature, values):
        size = sum(context.get_abi_sizeof(context.get_value_type(each)) + 8 for each in all_types)
        if size > MOST_BYTES:
            raise NumbaTypeError(f"the arguments of a team's call take {size} bytes")
        packed = ir.LiteralStructType([context.get_value_type(each) for each in all_types])
        place = builder.inttoptr(values[0], packed.as_pointer())
        for index, value in enumerate([values[1], *cgutils.unpack_tuple(builder, values[2])]):
            builder.store(value, cgutils.gep_inbounds(builder, place, 0, index))
        code = ir.Function(
            builder.module, _code_type(context), name=f"{builder.function.name}.called"
        )
        code.linkage = "internal"
        inside = ir.IRBuilder(code.append_basic_block())
        given = inside.load(inside.bitcast(code.args[-1], packed.as_pointer()))
        context.get_function(function, call)(inside, cgutils.unpack_tuple(inside, given))
        context.call_conv.return_value(inside, context.get_dummy_value())
        return builder.ptrtoint(code, simd.INT64)

    return types.int64(types.int64, barrier, arguments, function), generate


@intrinsic
def _follow(typing_context, code, address):
    """Calls code that `_leave` returned, with the arguments at an address."""

    def generate(context, builder, signature, values):
        function = builder.inttoptr(values[0], _code_type(context).as_pointer())
        data = builder.inttoptr(values[1], cgutils.voidptr_t)
        result = cgutils.alloca_once(builder, cgutils.voidptr_t)
        error = cgutils.alloca_once(builder, cgutils.voidptr_t)
        prototype = function.type.pointee.args
        builder.call(
            function,
            [
                builder.bitcast(result, prototype[0]),
                builder.bitcast(error, prototype[1]),
                data,
            ],
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _code_type(context: Any) -> Any:
    return context.call_conv.get_function_type(types.none, [types.voidptr])


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
    """What the threads of one call share.

    Counters are never reset: a late thread may still look at those of a call that has ended.

    Attributes:
        steps: counters of each step.
        size: how many threads there are.
        board: of the team.
        call: its number, from 1 on.
    """

    steps: np.ndarray
    size: int
    board: np.ndarray
    call: int


@kernel
def enter(barrier):
    """Returns the number of this thread, counted from 0; called once, at the start."""
    return _fetch_add(barrier.steps, 0, _ENTERED, 1)


@kernel
def next_unit(barrier, step):
    """Returns the number of a unit of this step that no other thread has, counted from 0."""
    return _fetch_add(barrier.steps, step, _TAKEN, 1)


@kernel
def finish_unit(barrier, step):
    """Declares the unit that was taken last as finished and takes the next."""
    _fetch_add(barrier.steps, step, _FINISHED, 1)
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


def together(function: Callable[..., None]) -> Any:
    """Marks a function of a barrier and arguments that `ThreadTeam.run` runs on all threads."""
    body = kernel(function)

    def lead(barrier, *arguments):
        """Opens the call to others, takes part, closes it; returns how many are still inside."""
        slot = 1 + barrier.call % NUM_SLOTS
        board = barrier.board
        board[slot, _CODE] = _leave(board[slot, _DATA], barrier, arguments, body)
        board[slot, _HELPERS] = barrier.size - 1
        _show(board, 0, _OPEN, barrier.call)
        body(barrier, *arguments)
        _show(board, 0, _OPEN, 0)
        return _look(board, slot, _INSIDE)

    return entry_point(lead, known_as=function)


@entry_point
def _help(board, helper, last):
    """Takes part in calls after the last one, until none has come for a while."""
    looks = 0
    while looks < LINGER:
        call = _look(board, 0, _OPEN)
        if call > last:
            last = call
            slot = 1 + call % NUM_SLOTS
            _fetch_add(board, slot, _INSIDE, 1)
            # A call that was closed meanwhile may have left its slot to another one.
            if _look(board, 0, _OPEN) == call and helper < board[slot, _HELPERS]:
                _follow(board[slot, _CODE], board[slot, _DATA])
            _fetch_add(board, slot, _INSIDE, -1)
            looks = 0
        looks += 1
        if looks < PATIENCE:
            _pause()
        else:
            _yield_core()
    return last


class ThreadTeam:
    """Threads that wait to run a function together; the calling thread is one of them.

    A team runs one function at a time: concurrent calls wait for each other.

    Attributes:
        board: a line for the call that is open, then one for each slot.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.board = np.zeros((1 + NUM_SLOTS, _FIELDS), np.int64)
        self._arguments = np.zeros((NUM_SLOTS, MOST_BYTES), np.uint8)
        self.board[1:, _DATA] = [row.ctypes.data for row in self._arguments]
        self._kept: list[object] = [None] * NUM_SLOTS
        self._last_call = 0
        self._helpers: list[_Helper] = []

    def run(self, function: Callable[..., int], num_steps: int, *arguments: Any) -> None:
        """Runs `function(barrier, *arguments)` on `torch.get_num_threads()` threads.

        `function` is marked by `together` and has at most `num_steps` steps. When this returns, all
        units are finished.
        """
        if not getattr(function, "overloads", True):  # it is compiled code, and there is none yet
            compile_apart(function, Barrier(self.board, 1, self.board, 1), arguments)
        import torch  # noqa: PLC0415 - the program that compiles starts in a quarter of the time without

        asked = perf_counter()
        with self._lock:
            book_wait(asked)
            size = torch.get_num_threads()
            self._wake(size - 1)
            call = self._last_call = self._next_call()
            steps = np.zeros((ROOM * num_steps, _FIELDS), np.int64)
            barrier = Barrier(steps, size, self.board, call)
            self._kept[call % NUM_SLOTS] = barrier, arguments  # as long as a thread is inside
            num_inside = function(barrier, *arguments)
            assert num_inside is not None, "a team runs what `together` marks"
            assert not steps[num_steps, _TAKEN], "a call takes more steps than it says"
            if not num_inside:
                self._kept[call % NUM_SLOTS] = None

    def _next_call(self) -> int:
        """Returns a number for a call whose slot nobody is inside of."""
        call = self._last_call + 1
        while self.board[1 + call % NUM_SLOTS, _INSIDE]:
            call += 1
        return call

    def _wake(self, num_helpers: int) -> None:
        while len(self._helpers) < num_helpers:
            self._helpers.append(_Helper(self, len(self._helpers)))
        for helper in self._helpers[:num_helpers]:
            helper.wake()


class _Helper:
    """A thread that takes part in calls, and sleeps where none come.

    Args:
        team: whose calls; it lives as long as the thread, which may be late in one.
        number: which of the helpers it is.
    """

    def __init__(self, team: ThreadTeam, number: int) -> None:
        self._team, self._number = team, number
        self._is_asleep = False
        self._alarm: queue.SimpleQueue[None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="treesnake").start()

    def wake(self) -> None:
        """Wakes the thread if it sleeps."""
        if self._is_asleep:
            self._is_asleep = False
            self._alarm.put(None)

    def _work(self) -> None:
        last = 0
        while True:
            last = _help(self._team.board, self._number, last)
            self._is_asleep = True
            # Who took it for awake just before has no alarm to give; that call comes at once.
            last = _help(self._team.board, self._number, last)
            self._alarm.get()


TEAM = ThreadTeam()


def _renew_after_fork() -> None:
    TEAM.__init__()  # the child has none of its parent's threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_after_fork)
