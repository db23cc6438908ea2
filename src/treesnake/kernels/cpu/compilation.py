"""Kernels are compiled in processes of their own, so that they can be compiled beside each other.

numba compiles one function at a time in a process, and holds the interpreter's lock meanwhile. The
other process leaves the machine code on disk, where this one reads it. What the compiler took of
memory goes back with its process. Processes that want the same kernel wait for the first of them.
"""

import os
import pickle
import subprocess
import sys
from contextlib import suppress
from typing import Any

from filelock import FileLock
from numba import typeof
from numba.core import config, event

from treesnake.kernels.cpu.jit import KernelCache

COMPILER = "treesnake.kernels.cpu.entry_compiler"
"""The program that compiles."""


def compile_apart(entry_point: Any, *arguments: Any) -> None:
    """Compiles an entry point for such arguments, unless its machine code is on disk.

    Where that cannot be, nothing happens: numba compiles when the entry point is called.
    """
    cache, context = entry_point._cache, entry_point.targetctx
    signature = tuple(typeof(each) for each in arguments)
    if not isinstance(cache, KernelCache) or cache.holds(signature, context):
        return
    with suppress(OSError, NotImplementedError):
        cache.lock_path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache.lock_path):
            if not cache.holds(signature, context):
                with event.trigger_event("numba:compile", {"dispatcher": entry_point}):
                    _ask_process(cache.module, cache.name, signature)


def _ask_process(module: str, name: str, signature: tuple[Any, ...]) -> None:
    """Lets another Python compile; whether it did is seen on disk."""
    settings: Any = config
    same = {"PYTHONPATH": os.pathsep.join(sys.path), "NUMBA_CACHE_DIR": settings.CACHE_DIR}
    subprocess.run(
        [sys.executable, "-m", COMPILER],
        input=pickle.dumps((module, name, signature)),
        env=os.environ | same,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
