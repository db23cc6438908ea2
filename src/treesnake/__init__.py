"""Lossless speculative decoding with Mamba drafters and token trees."""

from treesnake.constraints import AllowedTokens, BannedTokens, Constraint, RepetitionPenalty
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
