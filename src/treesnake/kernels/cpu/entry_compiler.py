"""The program that compiles one entry point, and optimises what it calls only once.

numba optimises every function on its own, makes machine code of it, and optimises its LLVM code
again in each function that calls it. For kernels that Python never calls, that is work for nothing.
Here numba stops after it has lowered such a kernel to LLVM code. The library of the entry point
links all of that code, optimises it, and makes machine code of it.

This leans on internals of numba, so only this program does it. Where it fails, nothing is on disk,
and the process that calls the entry point compiles it in numba's usual way.
"""

import pickle
import sys
from importlib import import_module
from typing import Any

from numba import _dynfunc  # pyrefly: ignore[missing-module-attribute]
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import DefaultPassBuilder
from numba.core.compiler_machinery import AnalysisPass, register_pass
from numba.core.typed_passes import NativeLowering

from treesnake.kernels.cpu.jit import kernel_passes


def _passes_without_machine_code(state: Any) -> Any:
    """Returns numba's passes for a kernel that only kernels call."""
    state.library = _LoweredCode(state.targetctx.codegen(), state.func_id.func_qualname)
    state.flags.no_compile = True
    passes = DefaultPassBuilder.define_nopython_pipeline(state)
    passes.add_pass_after(_OfferToKernels, NativeLowering)
    passes.finalize()
    return passes


class _LoweredCode(JITCodeLibrary):
    """LLVM code that is optimised where it is linked into."""

    def _optimize_functions(self, ll_module: Any) -> None:
        """Leaves new code as it is."""

    def _optimize_final_module(self) -> None:
        """Leaves linked code as it is."""

    def _finalize_final_module(self) -> None:
        """Makes no machine code."""
        self._finalized = True


@register_pass(mutates_CFG=False, analysis_only=True)
class _OfferToKernels(AnalysisPass):
    """Tells numba which code stands for calls of the kernel."""

    _name = "treesnake_offer_to_kernels"

    def __init__(self) -> None:
        super().__init__()  # abstract in numba

    def run_pass(self, state: Any) -> bool:  # pyrefly: ignore[bad-override]
        """Enters the code under a key of its own, as numba does for what it has compiled."""
        lowered = state.cr
        module, name = lowered.fndesc.lookup_module(), lowered.fndesc.qualname
        # Without wrappers for Python, numba's key is just such a function: its address is null.
        key = _dynfunc.make_function(module, name, "", 0, lowered.env, (state.library,))
        state.targetctx.insert_user_function(key, lowered.fndesc, [state.library])
        state.cr = lowered._replace(cfunc=key)
        return False


def main() -> None:
    """Compiles what standard input names."""
    module, name, signature = pickle.load(sys.stdin.buffer)
    entry_point = getattr(import_module(module), name)
    kernel_passes.set(_passes_without_machine_code)
    entry_point.compile(signature)


if __name__ == "__main__":
    main()
