"""Records on disk."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError, OutputError
from treesnake.evaluation.bench.journal import Journal
from treesnake.evaluation.bench.record import (
    DrafterRecord,
    RunRecord,
    ShapeUse,
    ShownStep,
    StepRecord,
    Tally,
    TurnRecord,
)

STEPS = StepRecord(4, 2, 0.1, 0.2, 0.0, 0.01, Tally((2, 1), (2, 0)), Tally((3,), (2,)),
                   {"chain(2)": ShapeUse(2, 4, 0.31)})  # fmt: skip
SHOWN = ShownStep("chain(2)", (5, 6), (-1, 0), (0, 1), (6, 7), 0.1, 0.2, texts=("a", "b"))
TURN = TurnRecord(3, 4, 2, 2, 0.5, 1.5, (1, 2, 3, 4), STEPS, (SHOWN,))
RUN = RunRecord("pair", "chain(2)", "task", "7", "qa", "greedy", 0, (TURN,), growth_bytes=10)
AGREEMENT = DrafterRecord("pair", "mamba", "task", "7", "qa", 3, 0.5, 2, (3,), (2.5,), (2.0,))


def test_a_record_that_was_written_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.log.jsonl"
    journal = Journal(path, {"name": "b"})
    journal.append(RUN)
    assert AGREEMENT.key not in journal
    journal.append(AGREEMENT)
    assert journal.records == [RUN, AGREEMENT]
    assert AGREEMENT.key in journal
    assert "null" not in path.read_text(), "what is None is left out"
    again = Journal(path, {"name": "b"})
    assert again.records == [RUN, AGREEMENT]
    assert again.runs == [RUN]
    assert again.agreements == [AGREEMENT]
    assert RUN.key in again


def test_an_unfinished_line_is_dropped_and_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "b.log.jsonl"
    journal = Journal(path, {"name": "b"})
    journal.append(RUN)
    path.write_bytes(path.read_bytes() + b'{"kind": "run", "pa')
    again = Journal(path, {"name": "b"})
    assert again.records == [RUN]
    again.append(AGREEMENT)
    assert Journal(path).records == [RUN, AGREEMENT]


def test_the_records_of_another_recipe_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "b.log.jsonl"
    Journal(path, {"name": "b"}).append(RUN)
    with pytest.raises(InvalidInputError, match="another recipe"):
        Journal(path, {"name": "c"})
    assert Journal(path).records == [RUN]


@pytest.mark.parametrize("content", ["", "no json\n", '{"turns": []}\n'])
def test_a_file_of_another_kind_is_no_journal(tmp_path: Path, content: str) -> None:
    path = tmp_path / "b.log.jsonl"
    path.write_text(content)
    with pytest.raises(InvalidInputError, match="no records"):
        Journal(path)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r\n"])
def test_ends_of_lines_in_names_and_questions_are_text(tmp_path: Path, mark: str) -> None:
    path, recipe = tmp_path / "b.log.jsonl", {"name": f"one{mark}two"}
    record = replace(RUN, category=f"one{mark}two", asked=f"{mark}?")
    Journal(path, recipe).append(record)
    assert Journal(path, recipe).records == [record]


def test_a_record_that_is_no_text_is_kept_and_its_journal_goes_on(tmp_path: Path) -> None:
    path, recipe = tmp_path / "b.log.jsonl", {"name": "half \ud83d"}
    Journal(path, recipe).append(replace(RUN, error="caf\udce9"))
    assert Journal(path, recipe).runs[0].error == "caf\N{REPLACEMENT CHARACTER}"


@given(st.integers(1, 400))
@example(1)
@example(20)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_a_header_that_was_cut_is_written_anew(tmp_path: Path, length: int) -> None:
    path = tmp_path / "b.log.jsonl"
    path.unlink(missing_ok=True)
    Journal(path, {"name": "b"}).append(RUN)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(length, len(whole) - 1)])
    journal = Journal(path, {"name": "b"})
    assert journal.records == []
    journal.append(RUN)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content", [b"my notes", b"my notes\nand more", b'{"a": 1}\n{"b"', b"[1]\nx"]
)
@pytest.mark.parametrize("recipe", [None, {"name": "b"}])
def test_a_file_that_is_no_journal_is_left_as_it_is(
    tmp_path: Path, content: bytes, recipe: dict[str, str] | None
) -> None:
    path = tmp_path / "notes.log.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match="no records of a benchmark"):
        Journal(path, recipe)
    assert path.read_bytes() == content


def test_a_reader_changes_nothing_and_tells_what_is_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "b.log.jsonl"
    Journal(path, {"name": "b"}).append(RUN)
    path.write_bytes(path.read_bytes() + b'{"kind": "r')
    content = path.read_bytes()
    assert Journal(path).records == [RUN]
    assert path.read_bytes() == content
    assert "was cut off while it was written; it is left out" in caplog.text
    with pytest.raises(InvalidInputError, match="another recipe"):
        Journal(path, {"name": "c"})
    assert path.read_bytes() == content
    Journal(path, {"name": "b"})
    assert "it is made again" in caplog.text
    assert path.read_bytes() == content[: -len(b'{"kind": "r')]


def test_runs_that_two_benchmarks_mixed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.log.jsonl"
    Journal(path, {"name": "b"}).append(RUN)
    header, line = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + line + line)
    with pytest.raises(InvalidInputError, match=r"line 3 of .* is there already.*two benchmarks"):
        Journal(path)


def test_a_full_disk_is_told_and_the_benchmark_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.log.jsonl"
    journal = Journal(path, {"name": "b"})
    journal.append(RUN)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"No space.*the 1 records in it are kept: make room"):
            journal.append(AGREEMENT)
    path.write_bytes(path.read_bytes()[:-5])
    again = Journal(path, {"name": "b"})
    again.append(AGREEMENT)
    assert Journal(path).records == [RUN, AGREEMENT]
