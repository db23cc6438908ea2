"""The gate for numbers, token ids and lists that users give."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from treesnake.arguments import (
    as_count,
    as_num_threads,
    as_number,
    as_seed,
    as_texts,
    as_token_ids,
)
from treesnake.errors import InvalidInputError

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.fractions(),
    st.complex_numbers(),
)
NUMPY_NUMBERS = [np.int64(3), np.int8(3), np.uint16(3)]


def outcome(gate: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
    """What a gate returns, or what it tells."""
    try:
        return gate(*arguments), None
    except InvalidInputError as error:
        return None, str(error)


@given(ANYTHING)
@example(2.5)
@example(2.0)
@example(True)
@example(10**30)
@example(10**5000)
@example("3")
def test_a_count_is_a_whole_number_or_is_refused(value: Any) -> None:
    count, told = outcome(as_count, "max_new_tokens", value)
    if told is None:
        assert type(count) is int
        assert count == value >= 1
    else:
        assert "max_new_tokens must be" in told
        assert len(told) < 200


@given(ANYTHING)
@example(10**400)
@example(5e-324)
@example(1e300)
@example(np.float32(0.5))
@example(np.bool_(True))
def test_a_number_is_a_float_or_is_refused(value: Any) -> None:
    number, told = outcome(as_number, "temperature", value)
    if told is None:
        assert type(number) is float
        assert not isinstance(value, bool)
    else:
        assert "temperature must be a" in told
        assert len(told) < 200


@given(ANYTHING)
@example(1.5)
@example(True)
@example(-1)
@example(2**63)
def test_a_seed_is_a_whole_number_in_range_or_is_refused(value: Any) -> None:
    seed, told = outcome(as_seed, value)
    if told is None:
        assert type(seed) is int
        assert 0 <= seed == value < 2**63
    else:
        assert "a seed must be" in told
        assert len(told) < 200


@pytest.mark.parametrize("value", NUMPY_NUMBERS, ids=lambda value: type(value).__name__)
def test_numbers_of_numpy_are_taken(value: Any) -> None:
    for number in (as_count("n", value), as_seed(value), *as_token_ids("ids", [value])):
        assert type(number) is int
        assert number == 3


@given(ANYTHING)
@example("end")
@example(b"end")
@example(["1"])
@example([1.0])
def test_token_ids_are_whole_numbers_or_are_refused(value: Any) -> None:
    ids, told = outcome(as_token_ids, "end_token_ids", value)
    if told is None:
        assert all(type(token) is int for token in ids)
    else:
        assert "end_token_ids must be" in told
        assert len(told) < 200


@given(ANYTHING)
@example([b"x"])
@example(["a", None])
@example("stop")
@example(iter(["a", "b"]))
def test_texts_are_strings_or_are_refused(value: Any) -> None:
    texts, told = outcome(as_texts, "stop", value)
    if told is None:
        assert all(type(text) is str for text in texts)
    else:
        assert "stop is a list of strings" in told
        assert len(told) < 200


@given(st.integers() | st.floats() | st.booleans() | st.none() | st.text())
@example(0)
@example(1024)
@example(1025)
@example(10**15)
def test_threads_are_so_many_that_a_process_can_start_or_are_refused(value: Any) -> None:
    is_right = type(value) is int and 1 <= value <= 1024
    try:
        assert as_num_threads(value) == value
        is_taken = True
    except InvalidInputError:
        is_taken = False
    assert is_taken == is_right


def test_no_list_of_texts_is_an_empty_one() -> None:
    assert as_texts("stop", None) == ()
