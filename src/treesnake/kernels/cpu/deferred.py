from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering
import os
KEEP = os.environ.get("KEEP", "")

class _Uncompiled(JITCodeLibrary):
    if "f" not in KEEP:
        def _optimize_functions(self, ll_module): pass
    if "m" not in KEEP:
        def _optimize_final_module(self) -> None: pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    _name = "treesnake_lowering"

    def run_pass(self, state: Any) -> bool:
        context = state.targetctx
        state.library = _Uncompiled(context.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        state.cr = state.cr._replace(cfunc=id)
        context.insert_user_function(id, state.cr.fndesc, [state.library])
        state.reload_init.extend(state.library._reload_init)
        return True


class DeferredCompiler(CompilerBase):
    def define_pipelines(self) -> Any:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.passes = [(_Lowering if each is NativeLowering else each, why) for each, why in pipeline.passes]
        pipeline._finalized = False
        pipeline.finalize()
        return [pipeline]
