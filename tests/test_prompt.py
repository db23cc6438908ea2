"""Prompts: what is refused, and what a session that holds some tokens still lacks."""

from enum import IntEnum
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.prompt import Prompt, PromptInput, num_shared

TOKENS = st.lists(st.integers(0, 2), max_size=6)


def test_the_picture_of_an_input_is_no_part_of_what_it_is() -> None:
    bare, shown = (
        PromptInput({"pixel_values": torch.zeros(1)}, 0, 1, picture=each)
        for each in (None, "a picture")
    )
    assert bare == shown
    assert hash(bare) == hash(shown)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="prompt is empty"):
        Prompt(())


def test_negative_tokens_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="-3"):
        Prompt((1, -3))


def test_a_prompt_is_made_of_any_sequence() -> None:
    expected = Prompt((3, 1, 2))
    array = np.array([3, 1, 2], dtype=np.uint16)
    tensor = torch.tensor([3, 1, 2])
    for token_ids in ([3, 1, 2], iter((3, 1, 2)), array, [*array], tensor, [*tensor]):
        assert Prompt.of(token_ids) == expected
    assert len(Prompt.of(range(4))) == 4


NO_TOKENS = [
    ([1, float("nan")], "number 2 of 2 is nan"),
    ([None], "number 1 of 1 is null"),
    ([1, 1.5], "number 2 of 2 is 1.5"),
    ([True, 1], "number 1 of 2 is true"),
    ([[1, 2]], "number 1 of 1 is a list of 2"),
    (np.ones((1, 2), int), "number 1 of 1 is a list of 2"),
    (torch.ones(2, 3), "number 1 of 2 is a list of 3"),
    (torch.tensor([1.0]), "number 1 of 1 is 1.0"),
    (torch.tensor([True]), "number 1 of 1 is true"),
    ([np.bool_(True)], "number 1 of 1 is true"),
    (["1"], "number 1 of 1 is '1'"),
    (torch.tensor(3), "not a value of type Tensor"),
    (3, "not 3"),
    (None, "not null"),
    (b"ab", "the prompt is of type bytes; give text, a list of token ids"),
    ({1, 2}, "the prompt is of type set"),
    ([-(10**400)], "negative, got a number of more than 64 bits"),
]


@pytest.mark.parametrize(("token_ids", "message"), NO_TOKENS)
def test_what_is_no_token_is_refused(
    token_ids: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(InvalidInputError, match=message):
        Prompt.of(token_ids)


WRONG_PARTS: list[tuple[dict[str, Any], str]] = [
    ({"token_ids": 5}, "not 5"),
    ({"token_ids": torch.zeros(2, dtype=torch.long, device="meta")}, "cannot be read"),
    ({"token_ids": torch.tensor([0, 5]).to_sparse()}, "cannot be read"),
    ({"borders": None}, "borders are a tuple"),
    ({"borders": (1.5,)}, "borders are a tuple"),
    ({"borders": ("a",)}, "borders are a tuple"),
    ({"inputs": None}, "a tuple of PromptInput, got null"),
    ({"inputs": (5,)}, "a tuple of PromptInput"),
]


@pytest.mark.parametrize(("parts", "message"), WRONG_PARTS)
def test_parts_of_other_types_are_refused(
    parts: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(InvalidInputError, match=message):
        Prompt(**({"token_ids": (1, 2)} | parts))


@pytest.mark.parametrize(
    "parts", [(None, 0, 1), ({"a": 5}, 0, 1), ({"a": torch.ones(1)}, None, 1), ({}, 0, 1)]
)
def test_an_input_is_tensors_and_a_place(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(InvalidInputError, match="an input of a prompt needs"):
        PromptInput(*parts)


def test_whole_numbers_of_other_classes_are_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    prompt = Prompt(np.array([3, 1]))  # type: ignore[arg-type]
    assert prompt == Prompt.of([IntEnum("Token", {"A": 3})(3), 1]) == Prompt((3, 1))


@given(st.lists(st.none() | st.booleans() | st.integers() | st.floats() | st.text()))
@example([10**5000])
def test_any_list_is_a_prompt_or_is_refused(token_ids: list[Any]) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        Prompt.of(token_ids).check(10, None)
        is_taken = True
    except InvalidInputError:
        is_taken = False
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    is_right = all(type(token) is int and 0 <= token < 10 for token in token_ids)
    assert is_taken == (is_right and bool(token_ids))


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


def test_a_prompt_without_inputs_has_no_placeholders() -> None:
    prompt = Prompt((4, 9, 9, 5, 9, 7, 8), (pixels(0.5), pixels(0.2, 4, 1)), borders=(1, 4, 6))
    assert prompt.without_inputs() == Prompt((4, 5, 7, 8), borders=(1, 2, 3))
    assert prompt.without_inputs().without_inputs() == prompt.without_inputs()


def test_the_end_of_a_prompt_keeps_what_belongs_to_it() -> None:
    prompt = Prompt((4, 9, 9, 5, 9, 7, 8), (pixels(0.5), pixels(0.2, 4, 1)), borders=(1, 4, 6))
    assert prompt.behind(3) == Prompt((5, 9, 7, 8), (pixels(0.2, 1, 1),), borders=(1, 3))
    assert prompt.behind(0) == prompt


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
    with pytest.raises(InvalidInputError, match="numbers of tokens from 0 to 2"):
        Prompt((1, 2), borders=(border,))


def test_a_prompt_that_goes_on_is_no_conversation_any_more() -> None:
    prompt = Prompt((5, 7), messages=({"role": "user", "content": "a"},))
    longer = prompt.followed_by([8, 9])
    assert longer.token_ids == (5, 7, 8, 9)
    assert longer.messages == ()
