"""How tokenizers of transformers turn tokens into text, and how much of that can still change."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerFast

from treesnake.text import (
    REPLACEMENT,
    Decode,
    Decoding,
    NumSettled,
    settled_if_appended,
    settled_if_tidied,
    shared_beginning,
)

APPENDING_DECODERS = frozenset(
    ["BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Strip", "WordPiece"]
)
"""Decoders of the package tokenizers that never rewrite whole characters."""

INVALID_BYTES = ("<0xFF>", "<0xFE>", "<0xC0>", "<0xC1>")
"""Tokens that make any run of byte tokens invalid."""

LONGEST_RUN = 64
"""Characters of a run of byte tokens that are held back at most."""


@runtime_checkable
class Detokenizer(Protocol):
    """What turns tokens into text."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Returns the text of token ids."""
        ...


def decoding_of(tokenizer: Detokenizer) -> Decoding:
    """Returns how a tokenizer turns tokens into text."""

    def decode(token_ids: Sequence[int]) -> str:
        return tokenizer.decode(token_ids, skip_special_tokens=True)

    @cache
    def name_of(token_id: int) -> str:
        return "" if decode([token_id]) else tokenizer.decode([token_id])

    return Decoding(decode, _num_settled(tokenizer, decode), name_of)


@dataclass(frozen=True)
class _ByteRuns:
    """Knows that a run of byte tokens is text only if all of it is valid UTF-8.

    Attributes:
        decode: turns token ids into text.
        invalid_token: a byte token that makes a run invalid.
    """

    decode: Decode
    invalid_token: int

    def __call__(self, token_ids: Sequence[int], text: str) -> int:
        broken = self.decode([*token_ids, self.invalid_token])
        same = shared_beginning(text, broken)
        # A run that looks invalid may lack its last bytes.
        return max(len(same.rstrip(REPLACEMENT)), len(text) - LONGEST_RUN)


def _num_settled(tokenizer: Detokenizer, decode: Decode) -> NumSettled:
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or _is_tidying(tokenizer):
        return settled_if_tidied
    decoder = _decoder(tokenizer)
    kinds = {_kind(part) for part in _parts(decoder)}
    if decoder and not kinds <= APPENDING_DECODERS:
        return settled_if_tidied
    if "ByteFallback" not in kinds:
        return settled_if_appended
    found = (tokenizer.backend_tokenizer.token_to_id(name) for name in INVALID_BYTES)
    invalid = next((token for token in found if token is not None), None)
    return settled_if_tidied if invalid is None else _ByteRuns(decode, invalid)


def _is_tidying(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Tells whether spaces before punctuation are removed, or the decoder is another one."""
    if type(tokenizer)._decode is not PreTrainedTokenizerFast._decode:
        return True
    is_byte_pairs = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    is_forced = tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    return bool(tokenizer.clean_up_tokenization_spaces) and (is_forced or not is_byte_pairs)


def decoder_parts(tokenizer: PreTrainedTokenizerFast) -> Iterator[Mapping[str, Any]]:
    """Returns the parts of a tokenizer's decoder, in their order, as plain data."""
    return _parts(_decoder(tokenizer))


def _decoder(tokenizer: PreTrainedTokenizerFast) -> Mapping[str, Any]:
    """Returns the decoder as plain data; without one, tokens are joined by spaces."""
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return {}
    try:
        return json.loads(decoder.__getstate__())
    except Exception:  # noqa: BLE001 - one that is written in Python has no such form
        return {"type": type(decoder).__name__}


def _parts(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder.get("type") != "Sequence":
        yield decoder
        return
    for part in decoder["decoders"]:
        yield from _parts(part)


def _kind(decoder: Mapping[str, Any]) -> str:
    """Returns the name of a decoder; replacing single characters is what Metaspace does."""
    kind = str(decoder.get("type"))
    pattern = decoder.get("pattern", {}).get("String", "") if kind == "Replace" else ""
    return "Metaspace" if len(pattern) == 1 else kind
