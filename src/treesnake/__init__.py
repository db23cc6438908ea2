"""Lossless speculative decoding with Mamba drafters and token trees.

A name of this package is imported when it is first used. So `import treesnake` takes no time, and
whoever needs a token tree alone waits for no model library.
"""

import importlib
import sys
import types
import typing

if typing.TYPE_CHECKING:
    from treesnake.constraints import (
        AllowedTokens,
        BannedTokens,
        Constraint,
        LogitBias,
        OccurrencePenalty,
        RepetitionPenalty,
    )
    from treesnake.custom_generate import custom_generate
    from treesnake.decoder import DecoderSession, SpeculativeDecoder, TextStream
    from treesnake.drafters.load import drafter_for
    from treesnake.errors import TreesnakeError
    from treesnake.generate import generate
    from treesnake.outcome import FinishReason, Generation, Step
    from treesnake.pairs import Pair
    from treesnake.prompt import Prompt
    from treesnake.sampling import SamplingParams
    from treesnake.search.static import StaticSearch
    from treesnake.shape import OFF, BestFirst, LevelWidths, chain
    from treesnake.tree import TokenTree

__all__ = [
    "OFF",
    "AllowedTokens",
    "BannedTokens",
    "BestFirst",
    "Constraint",
    "DecoderSession",
    "FinishReason",
    "Generation",
    "LevelWidths",
    "LogitBias",
    "OccurrencePenalty",
    "Pair",
    "Prompt",
    "RepetitionPenalty",
    "SamplingParams",
    "SpeculativeDecoder",
    "StaticSearch",
    "Step",
    "TextStream",
    "TokenTree",
    "TreesnakeError",
    "chain",
    "custom_generate",
    "drafter_for",
    "generate",
]

_MODULES = {
    "constraints": (
        "AllowedTokens",
        "BannedTokens",
        "Constraint",
        "LogitBias",
        "OccurrencePenalty",
        "RepetitionPenalty",
    ),
    "custom_generate": ("custom_generate",),
    "decoder": ("DecoderSession", "SpeculativeDecoder", "TextStream"),
    "drafters.load": ("drafter_for",),
    "errors": ("TreesnakeError",),
    "generate": ("generate",),
    "outcome": ("FinishReason", "Generation", "Step"),
    "pairs": ("Pair",),
    "prompt": ("Prompt",),
    "sampling": ("SamplingParams",),
    "search.static": ("StaticSearch",),
    "shape": ("OFF", "BestFirst", "LevelWidths", "chain"),
    "tree": ("TokenTree",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


class _Package(types.ModuleType):
    """A package whose exported names never stand for its modules.

    Python binds each imported module to its name in the package. Two exported functions,
    `generate` and `custom_generate`, have the names of their modules.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULE_OF and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> object:
        """Imports an exported name."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{self.__name__}.{_MODULE_OF[name]}"), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
