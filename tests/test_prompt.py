"""Prompts: what is refused, and what a session that holds some tokens still lacks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.prompt import Prompt, missing_tokens

TOKENS = st.lists(st.integers(0, 2), max_size=6)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="prompt is empty"):
        Prompt(())


def test_negative_tokens_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="-3"):
        Prompt((1, -3))


def test_a_prompt_is_made_of_any_sequence() -> None:
    assert Prompt.of([3, 1, 2]) == Prompt((3, 1, 2))
    assert len(Prompt.of(range(4))) == 4


def test_tokens_beyond_the_vocabulary_are_refused() -> None:
    Prompt((0, 9)).check(vocab_size=10, context_length=None)
    with pytest.raises(InvalidInputError, match="target's own tokenizer"):
        Prompt((0, 10)).check(vocab_size=10, context_length=None)


def test_a_prompt_must_leave_room_for_a_token() -> None:
    Prompt((0, 1)).check(vocab_size=2, context_length=3)
    with pytest.raises(ContextLengthError, match="no room"):
        Prompt((0, 1, 1)).check(vocab_size=2, context_length=3)


@given(TOKENS, TOKENS)
def test_what_is_missing_completes_what_is_held(held: list[int], wanted: list[int]) -> None:
    missing = missing_tokens(held, wanted)
    if wanted[: len(held)] == held:
        assert missing is not None
        assert held + missing == wanted
    else:
        assert missing is None


@given(TOKENS, st.lists(st.integers(0, 2), min_size=1))
def test_a_state_that_holds_too_much_has_to_start_afresh(
    wanted: list[int], surplus: list[int]
) -> None:
    assert missing_tokens([*wanted, *surplus], wanted) is None
