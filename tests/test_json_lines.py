"""Lines of JSON: what was written is read back, and what is no object is told or counted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError
from treesnake.json_lines import (
    LeftOutRows,
    Row,
    json_line,
    parse_json_lines,
    read_json_lines,
    sound_json_lines,
)

ENDS_OF_LINES = ("\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\n")
"""What `str.splitlines` takes for the end of a line."""

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


def outcome(rows: Iterator[Row]) -> tuple[list[Row], str]:
    """Reads until an error, and says which."""
    read: list[Row] = []
    try:
        for row in rows:
            read.append(row)  # noqa: PERF402 - what was read before an error counts
    except InvalidInputError as error:
        return read, str(error)
    return read, ""


@given(st.lists(st.dictionaries(st.text(), VALUES), max_size=4))
@example([{"a": f"one{''.join(ENDS_OF_LINES)}two"}])
@example([{"\u2028": {"\u0085": ["\x0c"]}}, {}])
def test_what_was_written_is_read_as_it_was(rows: list[dict[str, Any]]) -> None:
    content = b"".join(map(json_line, rows))
    assert content.count(b"\n") == len(rows)
    lines = [line + b"\n" for line in content.split(b"\n")[:-1]]
    assert [row.fields for row in parse_json_lines(lines, "f")] == rows


@given(st.text(st.characters(categories=["Cs", "Lu"])))
@example("half \ud83d")
@example("\udce9t\udce9")
def test_what_is_no_text_is_written_all_the_same(text: str) -> None:
    (row,) = parse_json_lines([json_line({"a": text})], "f")
    row.fields["a"].encode()


@given(st.lists(st.binary(max_size=12) | VALUES.map(lambda value: json.dumps(value).encode())))
@example([b"\xff"])
@example([b"[" * 100_000])
@example([b'{"a": ' * 100_000])
@example([b"1" * 5000])
@example([b'{"a": 1, "a": 2}'])
@example([b'{"a": 1}{"b": 2}', b"\x00\x00", b"null", b"NaN", b'{"a": "cut'])
def test_whatever_the_lines_hold_a_row_is_read_or_its_line_is_named(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    left_out = LeftOutRows()
    sound, refused = outcome(sound_json_lines(path, left_out))
    rows, error = outcome(read_json_lines(path))
    if refused:
        assert "save it as plain text in UTF-8" in refused
    elif error:
        first_bad = left_out.as_json()[0]["first"][0]
        assert f"line {first_bad} of {path}" in error
        assert rows == [row for row in sound if row.number < first_bad]
    else:
        assert rows == sound
        assert not len(left_out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"a": 1}\n{"a": \xff}\n',
            r"line 2 of .*rows.jsonl is not in UTF-8: found the byte 0xff",
        ),
        (b'\n{"a": 1\n', r"line 2 of .*rows.jsonl is no JSON"),
        (b'{"a": 1}\n{"a": "cut', "line 2 of .*, which may be cut off, is no JSON"),
        (b'[{"a": 1}]\n', r"line 1 of .* must be a JSON object, .*not a list of 1"),
        (b"null", "must be a JSON object, .*not null"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}\n', "the key 'c' stands there twice"),
        (b'{"a": ' + b"[" * 100_000, "line 1 of .* is nested too deep"),
        ("\ufeff".encode("utf-16") + '{"a": 1}\n'.encode("utf-16"), "is UTF-16; save it as"),
        (b"\x1f\x8b\x08", "is compressed; save it as"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        list(read_json_lines(path))


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_a_file_without_a_line_has_no_rows(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert list(read_json_lines(path)) == []


def test_files_of_other_systems_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"a": "é"}\r\n\r\n{"a": "b"}'.encode())
    assert [(row.number, row.fields) for row in read_json_lines(path)] == [
        (1, {"a": "é"}),
        (3, {"a": "b"}),
    ]


@pytest.mark.parametrize("name", ["missing.jsonl", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        list(read_json_lines(tmp_path / name))
    with pytest.raises(InvalidInputError, match="cannot be read"):
        list(sound_json_lines(tmp_path / name, LeftOutRows()))


def test_rows_that_were_left_out_are_told_by_reason() -> None:
    left_out = LeftOutRows()
    assert str(left_out) == "0 rows left out"
    left_out.add(2, "without text")
    for number in range(10, 17):
        left_out.add(number, "with no JSON object")
    expected = (
        "8 rows left out: 7 with no JSON object (row 10, 11, 12, 13, 14, ...); "
        "1 without text (row 2)"
    )
    assert str(left_out) == expected
    assert str(LeftOutRows.from_json(left_out.as_json())) == expected
