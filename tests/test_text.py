"""Text as it arrives: bytes for tokens, cut anywhere, also inside of characters."""

from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from treesnake.text import REPLACEMENT, Decoding, TextAssembler, settled_if_appended

TEXTS = st.text(st.sampled_from("ab é€😀"), max_size=12)
STOPS = st.lists(st.text("ab é", min_size=1, max_size=3), max_size=2)
CUTS = st.lists(st.integers(1, 4), min_size=1, max_size=8)


def decode(token_ids: Sequence[int]) -> str:
    return bytes(token_ids).decode(errors="replace")


def without_first_space(token_ids: Sequence[int]) -> str:
    """Some tokenizers drop the space before the first token that they decode."""
    return decode(token_ids).removeprefix(" ")


APPENDED = Decoding(decode, settled_if_appended)


def chunks(text: str, cuts: Sequence[int]) -> list[list[int]]:
    tokens = list(text.encode())
    parts = []
    for index in range(len(tokens)):
        if not tokens:
            break
        size = cuts[index % len(cuts)]
        parts.append(tokens[:size])
        del tokens[:size]
    return parts


def first_part(text: str, stops: Sequence[str]) -> str:
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


@given(TEXTS, STOPS, CUTS)
def test_pieces_join_to_the_text_before_its_first_stop_string(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    assembler = TextAssembler(decode, stops)
    pieces = [assembler.push(chunk) for chunk in chunks(text, cuts)]
    assert "".join([*pieces, assembler.finish()]) == first_part(text, stops)


@given(TEXTS, CUTS)
def test_no_piece_shows_half_a_character(text: str, cuts: list[int]) -> None:
    assembler = TextAssembler(APPENDED)
    for chunk in chunks(text, cuts):
        assert REPLACEMENT not in assembler.push(chunk)


@given(TEXTS, STOPS, CUTS)
@example(" aa", ["a", " aa"], [1])
def test_no_piece_has_to_be_taken_back(text: str, stops: list[str], cuts: list[int]) -> None:
    """Whatever comes after, what was shown is a beginning of the text."""
    for end in range(len(text) + 1):
        assembler = TextAssembler(APPENDED, stops)
        shown = "".join(assembler.push(chunk) for chunk in chunks(text[:end], cuts))
        assert first_part(text, stops).startswith(shown)


@given(TEXTS, STOPS, CUTS)
def test_what_is_held_back_is_what_the_end_would_show(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    assembler = TextAssembler(decode, stops)
    for chunk in chunks(text, cuts):
        assembler.push(chunk)
        assert assembler.held == assembler.held
    held = assembler.held
    assert assembler.finish() == held
    assert assembler.finish() == assembler.held == ""


@given(TEXTS, CUTS)
def test_decoders_that_drop_a_first_space_lose_no_other(text: str, cuts: list[int]) -> None:
    assembler = TextAssembler(without_first_space)
    pieces = [assembler.push(chunk) for chunk in chunks(text, cuts)]
    assert "".join([*pieces, assembler.finish()]) == without_first_space(list(text.encode()))


def test_what_a_decoder_may_still_tidy_up_is_held_back() -> None:
    tidied = TextAssembler(lambda tokens: decode(tokens).replace(" .", "."))
    pieces = [tidied.push([letter]) for letter in b"so it goes . and goes ."]
    assert pieces[:16] == [""] * 16
    assert "".join(pieces) + tidied.finish() == "so it goes. and goes."


def test_bytes_that_never_become_a_character_are_shown_in_the_end() -> None:
    assembler = TextAssembler(decode)
    assert assembler.push([0xF0, 0x9F]) == ""
    assert assembler.finish() == REPLACEMENT


def test_nothing_comes_after_a_stop_string() -> None:
    assembler = TextAssembler(APPENDED, ["."])
    assert assembler.push(b"a.b") == "a"
    assert assembler.push(b"c") == assembler.finish() == ""
