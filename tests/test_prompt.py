"""Prompts: what is refused, and what a session that holds some tokens still lacks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.prompt import Prompt, PromptInput, num_shared

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
def test_what_two_texts_share_is_their_longest_common_beginning(
    first: list[int], second: list[int]
) -> None:
    shared = num_shared(first, second)
    assert first[:shared] == second[:shared]
    assert shared in (len(first), len(second)) or first[shared] != second[shared]


def pixels(value: float, start: int = 1, num_placeholders: int = 2) -> PromptInput:
    tensors = {"pixel_values": torch.full((1, 3), value), "grid": torch.tensor([[1, 1, 2]])}
    return PromptInput(tensors, start, num_placeholders)


def test_the_key_has_digests_in_the_place_of_placeholders() -> None:
    image = pixels(0.5)
    assert Prompt((4, 9, 9, 5)).key == (4, 9, 9, 5)
    assert Prompt((4, 9, 9, 5), (image,)).key == (4, (image.digest, 0), (image.digest, 1), 5)


def test_prompts_are_equal_if_their_inputs_are() -> None:
    tokens = (4, 9, 9, 5)
    assert Prompt(tokens, (pixels(0.5),)) == Prompt(tokens, (pixels(0.5),))
    assert hash(Prompt(tokens, (pixels(0.5),))) == hash(Prompt(tokens, (pixels(0.5),)))
    assert Prompt(tokens, (pixels(0.5),)) != Prompt(tokens, (pixels(0.25),))
    assert Prompt(tokens, (pixels(0.5),)) != Prompt(tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.float64])
def test_inputs_of_any_dtype_have_a_digest(dtype: torch.dtype) -> None:
    digests = {
        PromptInput({"x": torch.tensor(values, dtype=dtype)}, 0, 1).digest
        for values in ([1, 0], [0, 1], [])
    }
    assert len(digests) == 3


@pytest.mark.parametrize("inputs", [(pixels(1.0, 2),), (pixels(1.0, 3),), (pixels(1.0),) * 2])
def test_placeholders_lie_in_the_prompt_one_after_the_other(
    inputs: tuple[PromptInput, ...],
) -> None:
    with pytest.raises(InvalidInputError, match="placeholders"):
        Prompt((4, 9, 9, 5), inputs)


def test_a_model_that_reads_text_says_what_it_cannot_read() -> None:
    Prompt((1, 2)).check_text_only()
    with pytest.raises(InvalidInputError, match="brings grid, pixel_values"):
        Prompt((4, 9, 9, 5), (pixels(1.0),)).check_text_only()


@pytest.mark.parametrize("border", [-1, 3])
def test_borders_lie_in_the_prompt(border: int) -> None:
    with pytest.raises(InvalidInputError, match="borders are numbers of tokens from 0 to 2"):
        Prompt((1, 2), borders=(border,))
