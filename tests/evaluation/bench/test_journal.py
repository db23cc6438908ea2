"""Records on disk."""

from dataclasses import replace
from pathlib import Path

import pytest

from treesnake.errors import InvalidInputError
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
