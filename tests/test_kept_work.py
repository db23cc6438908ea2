"""A record says what something was made from, and is whole or counts as missing."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from treesnake import kept_work
from treesnake.errors import InvalidInputError
from treesnake.kept_work import (
    FileDigests,
    KeptFolder,
    WorkRecord,
    alone,
    check_same,
    content_fact,
    differences,
)

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FACTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=4)
HERE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@HERE
@given(facts=FACTS)
@example(facts={"of": "x"})
@example(facts={"sha256": 1})
@example(facts={"": {"": [{}]}})
def test_facts_come_back_as_they_were_written_and_differ_from_no_copy(
    facts: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "record.json"
    WorkRecord(facts, {"a": "b"}).write(path)
    found = WorkRecord.read(path)
    assert found == WorkRecord(facts, {"a": "b"})
    assert differences(facts, found.made_from) == []


@given(then=FACTS, now=FACTS)
@example(then={"a": 1}, now={"a": True})
@example(then={"a": 1}, now={"a": 1.5})
@example(then={"a": "1"}, now={"a": 1})
@example(then={"a": [1, 2]}, now={"a": [2, 1]})
@example(then={"a": {"b": 1}}, now={"a": {"c": 1}})
@example(then={"a": [{"b": 1}]}, now={"a": [{"b": 1}, {"b": 2}]})
def test_what_differs_is_told_in_both_directions(then: dict[str, Any], now: dict[str, Any]) -> None:
    assert bool(differences(then, now)) == bool(differences(now, then))
    if not differences(then, now):
        check_same(then, now, Path("x"), "do")
        return
    with pytest.raises(InvalidInputError, match="x was made from something else") as told:
        check_same(then, now, Path("x"), "do something")
    assert str(told.value).endswith("do something")


def test_a_difference_has_its_place_its_old_and_its_new_value() -> None:
    then = {"target": content_fact("1" * 64, "a"), "settings": {"max_tokens": 8}, "list": [1]}
    now = {"target": content_fact("2" * 64, "b"), "settings": {"max_tokens": 9}, "list": [1, 2]}
    assert differences(then, now) == [
        "target: a (sha256 111111111111) then, b (sha256 222222222222) now",
        "settings.max_tokens: 8 then, 9 now",
        "list: [1] then, [1, 2] now",
    ]
    assert differences({}, {"x": 3}) == ["x: nothing then, 3 now"]


def test_content_is_known_by_its_digest_and_not_by_its_name() -> None:
    then, now = content_fact("1" * 64, "here"), content_fact("1" * 64, "there")
    assert differences({"a": then}, {"a": now}) == []
    assert differences({"a": [then]}, {"a": [now]}) == []


@HERE
@given(position=st.integers(0, 400), flip=st.integers(1, 255))
@example(position=20, flip=1)
def test_a_record_that_was_changed_or_cut_counts_as_missing(
    position: int, flip: int, tmp_path: Path
) -> None:
    path = tmp_path / "record.json"
    record = WorkRecord({"tokens": 8, "target": content_fact("1" * 64, "a")}, {"x": "y"})
    record.write(path)
    content = bytearray(path.read_bytes())
    position %= len(content) - 1
    content[position] ^= flip
    path.write_bytes(content)
    assert WorkRecord.read(path) in (None, record)  # space between values may change
    path.write_bytes(content[:position])
    assert WorkRecord.read(path) is None


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"\xff", b"{}", b"[" * 100_000, b'{"sha256": 1}', b"9" * 5000]
)
def test_what_is_no_record_counts_as_missing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    assert WorkRecord.read(path) is None
    assert FileDigests(path).of(path) == kept_work.sha256_of_file(path)
    assert WorkRecord.read(tmp_path) is None
    assert WorkRecord.read(tmp_path / "nothing") is None


def test_a_file_is_read_again_only_if_its_size_or_time_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, memory = tmp_path / "file", tmp_path / "digests.json"
    path.write_text("one")
    digests = FileDigests(memory)
    first = digests.of(path)
    digests.remember()
    num_read = []
    original = kept_work.sha256_of_file
    monkeypatch.setattr(
        kept_work, "sha256_of_file", lambda each: num_read.append(each) or original(each)
    )
    assert FileDigests(memory).of(path) == first
    assert not num_read
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert FileDigests(memory).of(path) != first
    assert num_read


def test_a_folder_that_is_begun_goes_on_and_one_that_is_done_is_done(tmp_path: Path) -> None:
    folder = KeptFolder(tmp_path / "work", FileDigests(tmp_path / "digests.json"))
    assert folder.fault() is None
    assert not folder.open({"a": 1}, print)
    assert not folder.open({"a": 2}, print)  # nothing was made yet
    (folder.folder / "part").write_text("x")
    with pytest.raises(InvalidInputError, match="a: 2 then, 1 now"):
        folder.open({"a": 1}, print)
    assert folder.fault() == "it is not finished"
    assert not folder.open({"a": 2}, print)
    folder.finish({"a": 2})
    assert folder.open({"a": 2}, print)
    assert folder.fault() is None
    with pytest.raises(InvalidInputError, match="a: 2 then, 1 now"):
        folder.open({"a": 1}, print)


def test_a_folder_tells_what_was_lost_or_changed_and_makes_that_anew(tmp_path: Path) -> None:
    folder = KeptFolder(tmp_path / "work", FileDigests(tmp_path / "digests.json"))
    folder.open({}, print)
    for name in ("kept", "lost", "changed"):
        (folder.folder / name).write_text(name)
    folder.finish({})
    (folder.folder / "lost").unlink()
    (folder.folder / "changed").write_text("CHANGED")
    told: list[str] = []
    assert folder.fault() is not None
    assert not folder.open({}, told.append)
    assert [message.split("/")[-1] for message in told] == [
        "changed has changed since it was written; it is made anew",
        "lost is lost; it is made anew",
    ]
    assert {path.name for path in folder.folder.iterdir()} == {"kept", "made_from.json"}


def test_a_lock_is_held_by_one_and_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        alone(path, "busy"),
        pytest.raises(InvalidInputError, match="busy"),
        alone(path, "busy"),
    ):
        pass
    with alone(path, "busy"):
        pass


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(kept_work.FileLock, "acquire", refuse)
    with pytest.warns(RuntimeWarning, match="has no locks"), alone(tmp_path / "lock", "busy"):
        pass


def test_a_record_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    WorkRecord({"a": (1, 2)}, {}).write(path)
    assert json.loads(path.read_text())["made_from"] == {"a": [1, 2]}
