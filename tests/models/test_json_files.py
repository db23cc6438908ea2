"""The gate for JSON files that describe a model."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from treesnake.errors import LoadError
from treesnake.models.json_files import MAX_DEPTH, parse_json, read_json, read_json_object

NAME = Path("config.json")

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON_VALUES)
@example(value={"time_step_limit": [0.0, float("inf")]})
@example(value={"model_type": "\N{SNAKE}"})
def test_what_json_writes_is_read_as_it_was(value: Any) -> None:
    assert parse_json(json.dumps(value).encode(), NAME) == value


@given(content=st.binary() | st.text().map(str.encode))
@example(content=b"")
@example(content=b'{"eos_token_id": 2,}')
@example(content=b'\xef\xbb\xbf{"eos_token_id": 2}')
@example(content=b"[" * 100_000)
@example(content=b"[" * 100_000 + b"]" * 100_000)
@example(content=b'{"a":' * 500 + b"1" + b"}" * 500)
@example(content=b"1" * 10_000)
@example(content=b'{"hidden_size": NaN}')
@example(content=b'{"hidden_size": 1, "hidden_size": 2}')
@example(content=b'"\\ud800"')
@example(content=b'"caf\xe9"')
def test_whatever_a_file_holds_is_a_value_or_a_load_error(content: bytes) -> None:
    with suppress(LoadError):
        parse_json(content, NAME)


def test_a_key_may_be_given_the_same_value_twice() -> None:
    assert parse_json(b'{"a": 1, "a": 1}', NAME) == {"a": 1}
    with pytest.raises(LoadError, match="the key 'a' has two values"):
        parse_json(b'{"a": 1, "a": 2}', NAME)


def test_depth_has_a_bound_of_its_own() -> None:
    parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, NAME)
    with pytest.raises(LoadError, match="levels deep"):
        parse_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), NAME)


def test_an_object_is_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json") == [1]
    with pytest.raises(LoadError, match=r"is no JSON object but \[1\]"):
        read_json_object(tmp_path / "a.json")


def test_what_is_no_file_is_told_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    for name, reason in (
        ("fifo.json", "a folder or a device"),
        ("folder.json", "a folder or a device"),
        ("link.json", r"has no link\.json"),
    ):
        with pytest.raises(LoadError, match=reason):
            read_json(tmp_path / name)


def test_a_file_that_is_too_large_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treesnake.models.json_files.MAX_BYTES", 4)
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(LoadError, match="more than 4 bytes"):
        read_json(tmp_path / "a.json")
