"""Builds the tokenizer that the metadata of a GGUF file describe, in about a second.

Two kinds of tokenizers are built here, byte-level pairs ("gpt2" in a file) and the pairs of
sentencepiece ("llama"). The other kinds, and unknown ways to split words, are left to transformers,
which takes up to a minute.

A file names how its tokenizer splits a text into words. Llama 3's, Qwen's and the like are regular
expressions, which transformers knows. SmolLM2's tokenizer splits digits one by one before anything
else, and so does llama.cpp for "smollm"; transformers 5.23 leaves that step out, so that "a  1"
gets other tokens there. A flag that is missing means what it means in llama.cpp.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from treesnake.errors import LoadError
from treesnake.models.gguf import GgufFile

BYTE_PAIRS, SENTENCE_PIECES = "gpt2", "llama"

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Types of tokens. Control and user-defined tokens are never cut."""

SPACE = "\u2581"
"""How a sentencepiece tokenizer writes a space."""

GPT2_SPLITS = ("gpt-2", "gpt2", "default", "phi-2", "olmo", "jais", "trillion", "granite-docling")
"""The splits of GPT-2; "default" is what files without a name mean."""

DIGIT_SPLITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Each digit is a word of its own; the rest is split as in GPT-2."""

WHOLE_WORD_SPLITS = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    *("jina-v5-nano", "tekken"),
)
"""A word that is a token stays whole, whatever the merges say; texts begin with a token."""

DEFAULT_IDS = {"bos": 1, "eos": 2, "unknown": 0}
"""The special tokens of a sentencepiece tokenizer that does not name them."""


def read_gguf_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a GGUF file, built here or by transformers.

    It warns where nobody knows how words are split.

    Raises:
        LoadError: if the metadata contradict themselves, or state what would be passed over.
    """
    metadata = file.metadata
    if can_build(metadata):
        return build_tokenizer(metadata)
    if metadata.get("tokenizer.ggml.model") == BYTE_PAIRS:
        warnings.warn(
            f"{file.path} splits words as {metadata.get('tokenizer.ggml.pre')!r:.40}, which is not "
            "known: they are split as GPT-2 does it, so that some texts get other tokens; a file "
            "in safetensors has them right",
            stacklevel=2,
        )
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
        file.path.parent, gguf_file=file.path.name, trust_remote_code=False
    )
    stated = metadata.get("tokenizer.ggml.add_space_prefix")
    if metadata.get("tokenizer.ggml.model") == SENTENCE_PIECES and stated is not None:
        has_space = "".join(tokenizer.tokenize("a")).startswith(SPACE)
        if has_space != bool(stated):
            raise LoadError(
                f"it states tokenizer.ggml.add_space_prefix = {stated!r:.40}, which transformers "
                "does not read; take a file in safetensors"
            )
    return tokenizer


def can_build(metadata: Mapping[str, Any]) -> bool:
    """Tells whether the tokenizer is of a kind that is built here."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind == BYTE_PAIRS:
        return "tokenizer.ggml.merges" in metadata and _split(metadata) is not None
    return kind == SENTENCE_PIECES and _architecture(metadata) not in ("gemma", "gemma2")


def build_tokenizer(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Builds a tokenizer of a kind that `can_build` knows, with its chat template.

    Raises:
        LoadError: if the metadata contradict themselves, or state what would be passed over.
    """
    _check_flags(metadata)
    kind = metadata["tokenizer.ggml.model"]
    backend = _byte_pairs(metadata) if kind == BYTE_PAIRS else _sentence_pieces(metadata)
    tokens: Sequence[str] = metadata["tokenizer.ggml.tokens"]
    types = _types(metadata)
    backend.add_special_tokens(_added(tokens, types, CONTROL, special=True))
    backend.add_tokens(_added(tokens, types, USER_DEFINED, special=False))
    special = {name: _special_id(metadata, name) for name in ("bos", "eos", "unknown", "padding")}
    names = {"unknown": "unk", "padding": "pad"}
    begins, ends = _marks(metadata)
    if begins and special["bos"] is None:
        raise LoadError(
            "its texts begin with a token, which it does not name (tokenizer.ggml.bos_token_id); "
            "fetch it again"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=metadata[f"{_architecture(metadata)}.context_length"],
        clean_up_tokenization_spaces=False,
        chat_template=metadata.get("tokenizer.chat_template"),
        add_bos_token=begins,
        add_eos_token=ends and special["eos"] is not None,
        **{
            f"{names.get(name, name)}_token": None if index is None else tokens[index]
            for name, index in special.items()
        },
    )


def _byte_pairs(metadata: Mapping[str, Any]) -> Tokenizer:
    tokens = metadata["tokenizer.ggml.tokens"]
    backend = Tokenizer(
        BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=_stated_merges(metadata),
            ignore_merges=metadata.get("tokenizer.ggml.pre") in WHOLE_WORD_SPLITS,
        )
    )
    backend.pre_tokenizer = _split(metadata)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_pieces(metadata: Mapping[str, Any]) -> Tokenizer:
    tokens = metadata["tokenizer.ggml.tokens"]
    stated = "tokenizer.ggml.merges" in metadata
    unknown = _special_id(metadata, "unknown")
    backend = Tokenizer(
        BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=_stated_merges(metadata) if stated else merges_by_score(metadata),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    adds_space = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    if _architecture(metadata) == "phi3":  # every part between special tokens gets a space
        steps = [normalizers.Prepend(SPACE)] if adds_space else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            SPACE, prepend_scheme="first" if adds_space else "never", split=False
        )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * adds_space)
    return backend


def merges_by_score(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the merges of a sentencepiece vocabulary: pairs whose whole is a piece, best first.

    Of one score, those with the longer first part come first.
    """
    tokens = metadata["tokenizer.ggml.tokens"]
    pieces = {
        token: score
        for token, score, kind in zip(
            tokens, metadata["tokenizer.ggml.scores"], _types(metadata), strict=True
        )
        if kind in (NORMAL, USER_DEFINED)
    }
    found = [
        (-score, -cut, cut - len(token), token[:cut], token[cut:])
        for token, score in pieces.items()
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    found.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in found]


def _split(metadata: Mapping[str, Any]) -> pre_tokenizers.PreTokenizer | None:
    """Returns how words are split, or None where it is not known."""
    name = metadata.get("tokenizer.ggml.pre", "default")
    adds_space = bool(metadata.get("tokenizer.ggml.add_space_prefix", False))
    if name in GPT2_SPLITS:
        return pre_tokenizers.ByteLevel(add_prefix_space=adds_space)
    if name in DIGIT_SPLITS:
        first = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(adds_space)])
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (  # noqa: PLC0415
        GGUF_PRE_TOKENIZER_SPLITS,
    )

    if name not in GGUF_PRE_TOKENIZER_SPLITS:
        return None
    first = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=adds_space, use_regex=False)
    return pre_tokenizers.Sequence([first, last])


def _stated_merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    if not all(len(merge) == 2 for merge in merges):
        raise LoadError("a merge of its tokenizer does not have two parts; fetch it again")
    return merges


def _added(
    tokens: Sequence[str], types: Sequence[int], wanted: int, *, special: bool
) -> list[AddedToken]:
    return [
        AddedToken(token, normalized=False, special=special)
        for token, kind in zip(tokens, types, strict=True)
        if kind == wanted
    ]


def _types(metadata: Mapping[str, Any]) -> Sequence[int]:
    tokens = metadata["tokenizer.ggml.tokens"]
    return metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))


def _special_id(metadata: Mapping[str, Any], name: str) -> int | None:
    is_pieces = metadata["tokenizer.ggml.model"] == SENTENCE_PIECES
    default = DEFAULT_IDS.get(name) if is_pieces else None
    return metadata.get(f"tokenizer.ggml.{name}_token_id", default)


def _marks(metadata: Mapping[str, Any]) -> tuple[bool, bool]:
    """Returns whether a text begins with a token of its own, and whether it ends with one."""
    is_pieces = metadata["tokenizer.ggml.model"] == SENTENCE_PIECES
    usual = is_pieces or metadata.get("tokenizer.ggml.pre") in WHOLE_WORD_SPLITS
    if "tokenizer.ggml.bos_token_id" not in metadata and not is_pieces:
        usual = False
    begins = metadata.get("tokenizer.ggml.add_bos_token", usual)
    return bool(begins), bool(metadata.get("tokenizer.ggml.add_eos_token", False))


def _check_flags(metadata: Mapping[str, Any]) -> None:
    for key in ("add_sep_token", "remove_extra_whitespaces"):
        if metadata.get(f"tokenizer.ggml.{key}"):
            raise LoadError(
                f"it states tokenizer.ggml.{key}, which is not known for a tokenizer of the kind "
                f"{metadata['tokenizer.ggml.model']!r}; take a file in safetensors"
            )


def _architecture(metadata: Mapping[str, Any]) -> str:
    return metadata.get("general.architecture", "llama")
