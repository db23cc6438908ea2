"""A tokenizer that is built from metadata is the one that the metadata were made of."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.integrations.gguf import convert_gguf_tokenizer

from treesnake.errors import LoadError
from treesnake.loading.gguf_tokenizer import (
    build_tokenizer,
    can_build,
    merges_by_score,
    read_gguf_tokenizer,
)
from treesnake.models.gguf import GgufFile
from treesnake.testing import tokenizers

Write = Callable[..., Path]

SCRIPTS = st.lists(
    st.one_of(
        st.sampled_from("ab they's 12\n\t\r'.,"),
        st.characters(min_codepoint=0x20, max_codepoint=0x2FFF, exclude_categories=["Cs"]),
        st.characters(min_codepoint=0x3040, max_codepoint=0x1FAFF, exclude_categories=["Cs"]),
        st.sampled_from([tokenizers.END, tokenizers.TURN, "international news", "  ", "1234"]),
    ),
    max_size=30,
).map("".join)


def metadata_of(tokenizer: PreTrainedTokenizerFast, **changes: object) -> dict[str, Any]:
    """Returns what a file says of a byte-level tokenizer."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    added = tokenizer.added_tokens_decoder
    types = [3 if added[index].special else 4 for index in added]
    kinds = dict(zip(added, types, strict=True))
    return {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds.get(index, 1) for index in range(len(tokens))],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.eos_token_id": tokenizer.convert_tokens_to_ids(tokenizers.END),
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def pieces(**changes: object) -> dict[str, Any]:
    """Returns what a file says of a small sentencepiece tokenizer, which lists no merges."""
    words = ["\u2581the", "the", "\u2581t", "th", "he", "er", "\u2581\u2581", "news", "ne", "ws"]
    letters = sorted({letter for word in words for letter in word} | set("abcd<0xA>"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(words) + len(letters))]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(words) + len(letters))]
    return {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "phi3.context_length": 64,
        "gemma3.context_length": 64,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": scores,
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


BYTE_LEVEL = {
    "gpt-2": tokenizers.byte_level(),
    "llama-bpe": tokenizers.byte_level_split(),
    "smollm": tokenizers.byte_level_digits(),
}


@pytest.mark.parametrize("split", BYTE_LEVEL)
@given(text=SCRIPTS)
def test_byte_level_tokenizers_give_the_tokens_of_the_original(split: str, text: str) -> None:
    original = BYTE_LEVEL[split]
    metadata = metadata_of(original, pre=split, add_bos_token=False)
    if split not in BUILT:
        BUILT[split] = build_tokenizer(metadata)
    built = BUILT[split]
    if split == "llama-bpe":  # Llama 3 takes a whole word first, which the original does not
        assert built.decode(built(text).input_ids) == text
        assert built.tokenize("a b") == original.tokenize("a b")
        return
    assert built(text).input_ids == original(text).input_ids
    assert built.decode(built(text).input_ids) == text


BUILT: dict[str, PreTrainedTokenizerFast] = {}


@pytest.mark.parametrize("architecture", ["gemma3", "llama", "phi3"])
@given(text=SCRIPTS)
def test_sentence_pieces_are_those_that_transformers_makes(architecture: str, text: str) -> None:
    if architecture not in BUILT:
        stated = {"add_space_prefix": architecture != "gemma3"}
        metadata = pieces(**stated) | {"general.architecture": architecture}
        assert can_build(metadata)
        BUILT[architecture] = build_tokenizer(metadata)
    if architecture not in THEIRS:
        THEIRS[architecture] = transformers_backend(architecture, pieces())
    ours = BUILT[architecture]
    found = ours(text, add_special_tokens=False).input_ids
    assert found == THEIRS[architecture].encode(text, add_special_tokens=False).ids


THEIRS: dict[str, Any] = {}


def test_spaces_that_are_a_token_of_their_own_stay_whole() -> None:
    metadata = pieces(add_space_prefix=False)
    place = metadata["tokenizer.ggml.tokens"].index("news")
    for key, value in (("tokens", "   "), ("token_type", 4)):
        metadata[f"tokenizer.ggml.{key}"][place] = value
    built = build_tokenizer(metadata)
    assert built.tokenize("a    b") == ["a", "   ", "\u2581", "b"]
    assert built.decode(built("a    b", add_special_tokens=False).input_ids) == "a    b"


def transformers_backend(architecture: str, metadata: Mapping[str, Any]) -> Any:
    fields = {
        "tokenizer_type": metadata["tokenizer.ggml.model"],
        "tokens": metadata["tokenizer.ggml.tokens"],
        "scores": metadata["tokenizer.ggml.scores"],
        "token_type": metadata["tokenizer.ggml.token_type"],
    }
    return convert_gguf_tokenizer(architecture, fields)[0]


def test_a_word_that_is_a_token_stays_whole_where_the_split_says_so() -> None:
    original = tokenizers.byte_level_split()
    metadata = metadata_of(original, pre="llama-bpe", add_bos_token=False)
    metadata["tokenizer.ggml.merges"] = []
    word = next(
        token for token in metadata["tokenizer.ggml.tokens"] if token.isalpha() and token[3:]
    )
    assert build_tokenizer(metadata).tokenize(word) == [word]
    assert len(build_tokenizer(metadata | {"tokenizer.ggml.pre": "gpt-2"}).tokenize(word)) > 1


def test_pieces_are_merged_in_the_order_of_their_scores() -> None:
    metadata = {
        "tokenizer.ggml.tokens": ["a", "b", "ab", "abb", "bb", "<s>"],
        "tokenizer.ggml.scores": [0.0, 0.0, -2.0, -3.0, -1.0, 0.0],
        "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 3],
    }
    assert merges_by_score(metadata) == [("b", "b"), ("a", "b"), ("ab", "b"), ("a", "bb")]


@pytest.mark.parametrize(
    ("changes", "begins", "ends"),
    [
        ({}, True, False),
        ({"add_bos_token": False}, False, False),
        ({"add_eos_token": True}, True, True),
    ],
)
def test_pieces_begin_with_a_token_unless_the_file_says_otherwise(
    changes: dict[str, object], begins: bool, ends: bool
) -> None:
    ids = build_tokenizer(pieces(**changes))("the").input_ids
    assert (ids[0] == 1, ids[-1] == 2) == (begins, ends)


@pytest.mark.parametrize(
    ("split", "stated", "begins"),
    [
        ("gpt-2", {}, False),
        ("qwen2", {}, False),
        ("llama-bpe", {}, True),
        ("llama-bpe", {"add_bos_token": False}, False),
        ("gpt-2", {"add_bos_token": True}, True),
    ],
)
def test_byte_level_texts_begin_as_in_llama_cpp(
    split: str, stated: dict[str, object], begins: bool
) -> None:
    metadata = metadata_of(tokenizers.byte_level(), pre=split, **stated)
    metadata["tokenizer.ggml.bos_token_id"] = first = metadata["tokenizer.ggml.eos_token_id"]
    assert (build_tokenizer(metadata)("a").input_ids[0] == first) == begins


def test_a_text_that_begins_with_a_token_without_a_name_is_refused() -> None:
    metadata = metadata_of(tokenizers.byte_level(), pre="gpt-2", add_bos_token=True)
    with pytest.raises(LoadError, match="begin with a token, which it does not name"):
        build_tokenizer(metadata)


@pytest.mark.parametrize("key", ["add_sep_token", "remove_extra_whitespaces"])
def test_flags_that_would_be_passed_over_are_refused(key: str) -> None:
    assert build_tokenizer(pieces(**{key: False}))
    with pytest.raises(LoadError, match=f"states tokenizer.ggml.{key}"):
        build_tokenizer(pieces(**{key: True}))


@pytest.mark.parametrize("has_space", [True, False])
def test_a_space_before_texts_is_as_the_file_says(has_space: bool) -> None:
    tokenizer = build_tokenizer(pieces(add_space_prefix=has_space))
    assert tokenizer.tokenize("the") == (["\u2581the"] if has_space else ["the"])
    assert tokenizer.decode(tokenizer("the").input_ids, skip_special_tokens=True) == "the"


def test_a_broken_merge_is_told() -> None:
    metadata = metadata_of(tokenizers.byte_level(), merges=["a b c"])
    with pytest.raises(LoadError, match="does not have two parts"):
        build_tokenizer(metadata)


@given(text=st.text(max_size=40))
def test_any_text_comes_back_from_its_tokens(tokenizer_metadata: dict[str, Any], text: str) -> None:
    tokenizer = build_tokenizer(tokenizer_metadata)
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a the hell", ["a", "Ġthe", "Ġ", "he", "ll"]),
        ("12", ["1", "2"]),
        ("a  1", ["a", "Ġ", "Ġ", "1"]),
        ("<|im_end|>the", ["<|im_end|>", "t", "he"]),
        ("", []),
    ],
)
def test_digits_stand_alone_and_special_tokens_stay_whole(
    tokenizer_metadata: dict[str, Any], text: str, tokens: list[str]
) -> None:
    assert build_tokenizer(tokenizer_metadata).tokenize(text) == tokens


@pytest.mark.parametrize(("split", "is_known"), [("llama-bpe", True), ("unheard of", False)])
def test_a_way_to_split_words_that_nobody_knows_is_warned_of(
    tmp_path: Path, write_tiny_gguf: Write, split: str, is_known: bool
) -> None:
    pytest.importorskip("gguf")
    file = GgufFile(write_tiny_gguf(tmp_path / "m.gguf", **{"tokenizer.ggml.pre": split}))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert read_gguf_tokenizer(file)
    assert can_build(file.metadata) == is_known
    assert any("splits words as" in str(each.message) for each in told) != is_known


@pytest.mark.parametrize("has_space", [True, False])
def test_a_space_that_transformers_puts_against_the_file_is_refused(
    tmp_path: Path, write_tiny_gguf: Write, has_space: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    stated = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": has_space}
    path = write_tiny_gguf(tmp_path / "m.gguf", **{"general.architecture": "gemma"}, **stated)
    tokenizer = Mock(spec=PreTrainedTokenizerBase)
    tokenizer.tokenize.return_value = ["\u2581a"]
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", Mock(return_value=tokenizer))
    if has_space:
        assert read_gguf_tokenizer(GgufFile(path)) is tokenizer
        return
    with pytest.raises(LoadError, match="add_space_prefix = False"):
        read_gguf_tokenizer(GgufFile(path))
