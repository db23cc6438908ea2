"""Text from outside: what UTF-8 can hold is taken as it is, the rest is told."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError
from treesnake.utf8 import (
    check_path,
    check_text,
    decode_text,
    described,
    is_text,
    read_text_file,
    writable,
)


def is_utf8(content: bytes) -> bool:
    return content.decode(errors="ignore").encode() == content and content[:2] != b"\x1f\x8b"


ANY_TEXT = st.text(st.characters(exclude_categories=[]))


@given(ANY_TEXT | st.none() | st.binary() | st.floats() | st.lists(st.text()))
@example("half \ud83d")
@example("caf\udce9")
@example("a\0b")
@example(b"bytes")
def test_text_is_taken_as_it_is_and_the_rest_is_refused_by_name(value: Any) -> None:
    if is_text(value):
        assert check_text(value, "the prompt") is value
        assert value.encode().decode() == value
        return
    with pytest.raises(InvalidInputError, match=r"\Athe prompt ") as caught:
        check_text(value, "the prompt")
    str(caught.value).encode()


@given(ANY_TEXT)
@example("\ud83d\ude00")
@example("\ude00\ud83d")
def test_what_is_written_is_text_and_differs_only_where_it_was_none(text: str) -> None:
    written = writable(text)
    assert written.encode().decode() == written
    if is_text(text):
        assert written == text


@given(st.binary())
@example(b"\xff\xfea\x00")
@example(b"\xef\xbb\xbfa")
def test_bytes_are_text_or_the_line_is_named(content: bytes) -> None:
    with nullcontext() if is_utf8(content) else pytest.raises(InvalidInputError, match="UTF-8"):
        assert decode_text(content, "it").encode() == content.removeprefix(b"\xef\xbb\xbf")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the prompt must be text, not null"),
        (["a"], "the prompt must be text, not a list of 1"),
        ("ab\ud83d", r"half of a surrogate pair, '\\ud83d', at character 3 of"),
        ("caf\udce9", "found the byte 0xe9, which is of another encoding, at character 4"),
    ],
)
def test_a_message_says_what_was_found(value: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_text(value, "the prompt")


def test_a_file_is_read_without_its_mark_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo")
    assert read_text_file(path) == "one\ntwo"
    path.write_bytes(b"one\ntwo \xe9\n")
    with pytest.raises(InvalidInputError, match=r"line 2 of .*a\.toml is not in UTF-8.*0xe9"):
        read_text_file(path)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_text_file(tmp_path / "missing")


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/x", "caf\udce9"])
def test_a_name_that_no_file_can_have_is_told(name: str) -> None:
    with pytest.raises(InvalidInputError, match="the name of a task"):
        check_path(name, "the name of a task")


def test_a_name_is_a_path_whether_something_is_there_or_not(tmp_path: Path) -> None:
    assert check_path(str(tmp_path / "missing"), "it") == tmp_path / "missing"
    assert check_path("~/x", "it") == Path.home() / "x"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "true"),
        (1.5, "1.5"),
        (10**400, "a number of more than 64 bits"),
        ("x" * 99, repr("x" * 60) + "..."),
        ({"a": 1}, "an object with 1 keys"),
        (b"x", "a value of type bytes"),
    ],
)
def test_values_are_described_in_few_words(value: Any, expected: str) -> None:
    assert described(value) == expected
