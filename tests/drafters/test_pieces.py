"""A text read piece by piece has the tokens that its tokenizer gives it as a whole."""

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from treesnake.drafters.pieces import OpenPiece, PieceEncoder, PieceReader
from treesnake.drafters.text import Translation
from treesnake.errors import InvalidInputError
from treesnake.testing.tokenizers import KINDS, LINES, TURN

CHARACTERS = st.one_of(
    st.sampled_from(" \n\t\r'.,;:(){}[]#_-+=<>/\\0123456789aeiorstABZ"),
    st.sampled_from(
        [*"éßñжщ漢字かな。١٢٣४५", "🐍", "❤️", "\u00a0", "\u0301", "\u200b", "\u3000", "\x00"]
    ),
    st.characters(exclude_categories=["Cs"]),
)
SNIPPETS = st.sampled_from(
    ["  ", "\n\n    ", "don't", "we're", "'", " 're", "1234567", TURN, *LINES]
)
TEXTS = st.lists(st.one_of(CHARACTERS, SNIPPETS), max_size=30).map("".join)
CUTS = st.lists(st.integers(1, 4), max_size=60)
TOKENS = st.lists(st.integers(0, 10_000), max_size=40)


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


@cache
def reader(drafter: str, target: str) -> PieceReader:
    return Translation(tokenizer(drafter), tokenizer(target)).reader


def whole(kind: str, text: str) -> list[int]:
    return tokenizer(kind).backend_tokenizer.encode(text, add_special_tokens=False).ids


def check_reading(drafter: str, target: str, tokens: Sequence[int], cuts: Sequence[int]) -> None:
    reads = reader(drafter, target)
    held, piece, start = list[int](), OpenPiece(), 0
    for length in [*cuts, len(tokens)]:
        closed, piece = reads.read(piece, tokens[start : start + length])
        start += length
        held += closed
        assert held + reads.tokens(piece) == whole(drafter, reads.text(tokens[:start]))


@pytest.mark.parametrize("drafter", KINDS)
@settings(max_examples=60)
@given(TEXTS, CUTS, st.sampled_from([*KINDS]))
@example("a  b\n\n  c 'r", [1] * 30, "byte-level")
@example("It's we're\tdon't\r\n1234 5678", [1] * 40, "byte-level as in Llama 3")
@example("é\u0301 \u0301 ¨ ́x", [1] * 20, "byte-level")
def test_held_pieces_and_the_open_one_are_the_encoding_of_the_text(
    drafter: str, text: str, cuts: list[int], target: str
) -> None:
    check_reading(drafter, target, whole(target, text), cuts)


@pytest.mark.parametrize("drafter", KINDS)
@settings(max_examples=40)
@given(TOKENS, CUTS, st.sampled_from([*KINDS]))
def test_so_are_those_of_any_tokens_broken_characters_included(
    drafter: str, tokens: list[int], cuts: list[int], target: str
) -> None:
    size = len(tokenizer(target)) + 3  # rows of padding are no text
    check_reading(drafter, target, [token % size for token in tokens], cuts)


@pytest.mark.parametrize("drafter", KINDS)
def test_words_are_held_once_the_next_one_begins(drafter: str) -> None:
    reads = reader(drafter, "byte-level")
    tokens = whole("byte-level", "the international news the tree")
    closed, piece = reads.read(OpenPiece(), tokens)
    assert piece.text == " tree"
    assert closed + reads.tokens(piece) == whole(drafter, "the international news the tree")
    assert closed == whole(drafter, "the international news the")


def test_a_tokenizer_without_borders_is_refused() -> None:
    alphabet = {letter: index for index, letter in enumerate("ab. \n0x1Z(é'漢🐍")}
    alphabet |= {"\t": len(alphabet), "\r": len(alphabet) + 1}
    merges = [(guard, space) for guard in "a0.x" for space in " \n\t\r"]
    vocabulary = alphabet | {"".join(pair): len(alphabet) + n for n, pair in enumerate(merges)}
    joining = Tokenizer(models.BPE(vocabulary, merges))
    with pytest.raises(InvalidInputError, match="reach over white space"):
        PieceEncoder(PreTrainedTokenizerFast(tokenizer_object=joining))


def test_white_space_that_added_tokens_take_in_is_no_border() -> None:
    taking = KINDS["byte-level"]()
    taking.add_tokens([AddedToken("x y", normalized=False)])
    encoder = PieceEncoder(taking)
    assert encoder.border("ax y") == 0
    assert encoder.border("ab y") == 2
    assert encoder.border("ab y", num_searched=3) == 0
