"""How kernels are compiled: once for a machine and a state of these sources, then read from disk.

numba's cache on disk notices when the file of the cached function changes, but not when a function
that it calls changes in another file, which after an upgrade would run the old code in silence. So
the sources of all kernels are part of the key here, and only entry points, which Python calls, are
cached: whatever they call is compiled into them.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache

SOURCE_DIGEST = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()


class _SourceKeyedCache(FunctionCache):
    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), SOURCE_DIGEST)


# Without reference counts: arrays outlive the call, and threads would share the counters.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}


def kernel(function: Callable[..., Any]) -> Any:
    """Marks a function that compiled code calls: no interpreter lock, no new arrays, no checks.

    Arithmetic is IEEE without reassociation or contraction, so that a result does not depend on how
    LLVM vectorises a loop; kernels that want fused or reordered sums say so explicitly.
    """
    return njit(**_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Marks a kernel that becomes part of its callers: compiling it on its own costs more."""
    return njit(inline="always", **_OPTIONS)(function)


def entry_point(function: Callable[..., Any]) -> Any:
    """Marks a kernel that Python calls; its machine code is kept on disk where that is possible."""
    dispatcher = kernel(function)
    with suppress(RuntimeError):  # nowhere to write: every process compiles for itself
        dispatcher._cache = _SourceKeyedCache(function)
    return dispatcher
