"""Where texts end: stop rules on emitted tokens, one character a token."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError
from treesnake.outcome import FinishReason
from treesnake.stopping import Cut, EndTokens, StopStrings, first_cut

LETTERS = "abc "


def decode(token_ids: Sequence[int]) -> str:
    return "".join(LETTERS[token] for token in token_ids)


def encode(text: str) -> list[int]:
    return [LETTERS.index(letter) for letter in text]


def test_the_first_end_token_is_kept() -> None:
    assert EndTokens([7, 8])([7], [1, 8, 2, 7]) == Cut(2, FinishReason.END_TOKEN)


def test_end_tokens_of_an_earlier_step_do_not_count() -> None:
    assert EndTokens([7])([7, 7], [1, 2]) is None


TEXTS = st.text(LETTERS, max_size=12)
STRINGS = st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=2).map(tuple)


@given(TEXTS, st.integers(0, 12), STRINGS)
def test_a_text_ends_with_the_first_token_that_completes_a_stop_string(
    text: str, num_generated: int, strings: tuple[str, ...]
) -> None:
    """Wherever the text was divided into what was generated and what a step emits."""
    generated, emitted = text[:num_generated], text[num_generated:]
    if any(string in generated for string in strings):
        return
    lengths = [
        length
        for length in range(len(generated) + 1, len(text) + 1)
        if any(string in text[:length] for string in strings)
    ]
    cut = StopStrings(strings, decode)(encode(generated), encode(emitted))
    if lengths:
        assert cut == Cut(lengths[0] - len(generated), FinishReason.STOP_STRING)
    else:
        assert cut is None


def test_a_stop_string_may_begin_in_earlier_steps() -> None:
    rule = StopStrings(("abcab",), decode)
    assert rule(encode("ccccccccccccccccabca"), encode("bcc")) == Cut(1, FinishReason.STOP_STRING)


def test_only_the_end_of_a_long_text_is_decoded() -> None:
    lengths: list[int] = []

    def noting(token_ids: Sequence[int]) -> str:
        lengths.append(len(token_ids))
        return decode(token_ids)

    rule = StopStrings(("abc",), noting)
    rule([0] * 1000, [0])
    lengths.clear()
    rule([0] * 1001, [0, 0])
    assert max(lengths) < 60


def test_a_rule_can_be_used_for_another_text() -> None:
    rule = StopStrings(("ab",), decode)
    assert rule(encode("ca"), encode("c")) is None
    assert rule(encode("ba"), encode("b")) == Cut(1, FinishReason.STOP_STRING)
    assert rule([], encode("cb")) is None


def test_bytes_count_and_not_characters() -> None:
    """Tokens may be bytes, and a character several of them."""
    text = "\N{SNAKE}" * 3
    token_ids = list(text.encode())

    def decode_bytes(token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")

    rule = StopStrings((text,), decode_bytes)
    assert rule(token_ids[:-1], token_ids[-1:]) == Cut(1, FinishReason.STOP_STRING)
    assert rule(token_ids[:-2], token_ids[-2:-1]) is None


def test_empty_stop_strings_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="empty"):
        StopStrings(("stop", ""), decode)


def test_the_earliest_cut_wins_and_of_equal_ones_the_first() -> None:
    end, stop = EndTokens(encode("b")), StopStrings(("ab", "c"), decode)
    assert first_cut([end, stop], [], encode("ab")) == Cut(2, FinishReason.END_TOKEN)
    assert first_cut([stop, end], [], encode("ab")) == Cut(2, FinishReason.STOP_STRING)
    assert first_cut([end, stop], [], encode("acab")) == Cut(2, FinishReason.STOP_STRING)
    assert first_cut([end, stop], [], encode("aa")) is None
    assert first_cut([], [], encode("ab")) is None
