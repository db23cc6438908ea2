"""How kernels are compiled: once for a machine and a state of these sources, then read from disk.

numba's cache on disk notices when the file of the cached function changes, but not when a function
that it calls changes in another file, which after an upgrade would run the old code in silence. So
every file of this cache names the sources of all kernels, and only entry points, which Python
calls, are cached: whatever they call is compiled into them. A file of other sources or versions
counts as missing, and is never unpickled: its types may be gone.

Nor does numba notice that a file was cut or changed: it fails, or runs what is there. So every file
begins with a digest of the rest. A file that is broken counts as missing; where nothing can be
written, every process compiles for itself. Either is told in one warning, and is never an error.
"""

import hashlib
import pickle
import sys
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.extending import overload

VERSIONS = (sys.version, numba.__version__, llvmlite.__version__)

COMPILED_FROM = hashlib.sha256(
    repr(VERSIONS).encode()
    + b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).digest()
"""A digest of what decides on machine code: versions, and the sources of all kernels."""

CHECKED = "-checked"
"""What the names of files with a digest end in."""

_told: set[str] = set()


def _tell_once(where: str, error: object) -> None:
    if where in _told:
        return
    _told.add(where)
    warnings.warn(
        f"compiled kernels are not kept in {where}: {error}; they are compiled anew, which takes "
        "up to a minute; make room there, or set NUMBA_CACHE_DIR to a folder that can be written",
        RuntimeWarning,
        stacklevel=2,
    )


class _CheckedFiles(IndexDataCacheFile):
    """The files of one entry point, each with a digest in front."""

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (key, data))

    def load(self, key: Any) -> Any:
        """Returns what was compiled for a key; another process may have written over the file."""
        stored_key, data = super().load(key) or (None, None)
        return data if stored_key == key else None

    def has(self, key: Any) -> bool:
        """Tells whether the index has a key."""
        return key in self._load_index()

    def _load_index(self) -> Any:
        path = Path(self._index_path)
        nothing: dict[Any, Any] = {}
        try:
            stamp, overloads = self._read(path)
            return overloads if stamp == self._source_stamp else nothing
        except FileNotFoundError:
            return nothing
        except Exception as error:  # noqa: BLE001 - a pickle raises anything
            _tell_once(str(path.parent), f"{path.name} is broken ({error!r})")
            return nothing

    def _save_index(self, overloads: Any) -> None:
        self._write(Path(self._index_path), (self._source_stamp, overloads))

    def _load_data(self, name: str) -> Any:
        return self._read(Path(self._data_path(name)))

    def _save_data(self, name: str, data: Any) -> None:
        self._write(Path(self._data_path(name)), data)

    def _read(self, path: Path) -> Any:
        content = path.read_bytes()
        digest, stored = content[:32], content[32:]
        if hashlib.sha256(stored).digest() != digest:
            raise ValueError("its digest is that of another content")
        if not stored.startswith(COMPILED_FROM):
            raise FileNotFoundError(f"{path} is of other sources or versions")
        return pickle.loads(stored[len(COMPILED_FROM) :])

    def _write(self, path: Path, content: Any) -> None:
        stored = COMPILED_FROM + self._dump(content)
        with self._open_for_write(str(path)) as file:
            file.write(hashlib.sha256(stored).digest() + stored)


class KernelCache(FunctionCache):
    """The machine code of one entry point on disk.

    Args:
        function: gives it its name there.

    Attributes:
        module: where the entry point is.
        name: its name in the module.
        lock_path: a file that is locked by who compiles it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        name = f"{self._impl.filename_base}{CHECKED}"
        self._files = _CheckedFiles(self._cache_path, name, stamp)
        self._cache_file = self._files
        self.module, self.name = function.__module__, function.__name__
        self.lock_path = Path(self._cache_path, f"{name}.lock")

    def holds(self, sig: Any, target_context: Any) -> bool:
        """Tells whether there is code for a signature; reading it may fail all the same."""
        return self._files.has(self._index_key(sig, target_context.codegen()))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Returns the code for a signature, or None where it is not there or broken."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # noqa: BLE001 - whatever is there cannot be used
            _tell_once(str(self._cache_path), error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Writes code; where that fails it warns."""
        try:
            super().save_overload(sig, data)
        except Exception as error:  # noqa: BLE001 - what was compiled can be used all the same
            _tell_once(str(self._cache_path), error)


def kernel_folder() -> Path | None:
    """Returns where compiled kernels are kept; None if no folder can be written."""
    try:
        return Path(KernelCache(kernel).cache_path)
    except (RuntimeError, OSError):
        return None


def kernels_in(folder: Path) -> list[Path]:
    """Returns the files of compiled kernels, also those of other versions."""
    endings = (".nbi", ".*.nbc", ".lock")
    return sorted(path for each in endings for path in folder.glob(f"*{CHECKED}{each}"))


class _NoCache(NullCache):
    """Stands where no folder can be written."""

    def save_overload(self, sig: Any, cres: Any) -> None:
        _tell_once("any folder", "neither the package nor the user's cache can be written")


kernel_passes: ContextVar[Callable[[Any], Any]] = ContextVar(
    "kernel_passes", default=DefaultPassBuilder.define_nopython_pipeline
)
"""Gives the passes for what Python never calls; see `treesnake.kernels.cpu.entry_compiler`."""


class _KernelCompiler(CompilerBase):
    """Compiles what Python never calls."""

    def define_pipelines(self) -> Any:
        """Returns the passes that are wanted now."""
        return [kernel_passes.get()(self.state)]


# Without reference counts: arrays outlive the call, and threads would share the counters.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "_nrt": False,
    "no_cfunc_wrapper": True,
}
_CALLED_BY_KERNELS: dict[str, Any] = {
    **_OPTIONS,
    "no_cpython_wrapper": True,
    "pipeline_class": _KernelCompiler,
}
"""For what Python never calls. Wrappers that unpack structs of arrays take a quarter of the time of
compiling."""


def kernel(function: Callable[..., Any]) -> Any:
    """Marks a function that compiled code calls: no interpreter lock, no new arrays, no checks.

    Arithmetic is IEEE without reassociation or contraction, so that a result does not depend on how
    LLVM vectorises a loop; kernels that want fused or reordered sums say so explicitly.
    """
    return njit(**_CALLED_BY_KERNELS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Marks a kernel that becomes part of its callers: compiling it on its own costs more."""
    return njit(inline="always", **_CALLED_BY_KERNELS)(function)


def by_type(function: Callable[..., Any]) -> Any:
    """Marks what chooses, by the types of arguments, the kernel that `function` stands for."""
    options: Any = _CALLED_BY_KERNELS
    return overload(function, jit_options=options)


def entry_point(function: Callable[..., Any], *, known_as: Callable[..., Any] | None = None) -> Any:
    """Marks a kernel that Python calls; its machine code is kept on disk where that is possible.

    Args:
        function: the kernel.
        known_as: the function that gives its machine code a name on disk; itself by default.
    """
    dispatcher = njit(**_OPTIONS)(function)
    try:
        dispatcher._cache = KernelCache(known_as or function)
    except (RuntimeError, OSError):  # nowhere to write
        dispatcher._cache = _NoCache()
    return dispatcher
