"""Questions from files and by name."""

from pathlib import Path
from typing import Any

import pytest

from treesnake.errors import InvalidInputError, LoadError
from treesnake.evaluation import tasks
from treesnake.evaluation.tasks import HUB_TASKS, load_questions


def test_a_file_in_spec_benchs_format_is_read(question_file: Path) -> None:
    questions = load_questions(str(question_file))
    assert [question.category for question in questions] == ["loops", "loops", "words"]
    assert questions[0].turns == ("ab ab ab ab", "ab ab")


def test_the_first_of_each_category_are_kept(question_file: Path) -> None:
    assert [q.name for q in load_questions(str(question_file), per_category=1)] == ["1", "3"]
    with pytest.raises(InvalidInputError, match="per_category is at least 1, got 0"):
        load_questions(str(question_file), per_category=0)


@pytest.mark.parametrize("line", ["hello", "[]", '{"turns": 3}', '{"turns": []}', ""])
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InvalidInputError, match=r"line 1|no question"):
        load_questions(str(path))


def test_an_unknown_task_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(LoadError, match=r"alpaca.*gsm8k.*longbench:SUBSET"):
        load_questions("gsm9k")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"treesnake\[evaluation\].*JSONL"):
        load_questions("gsm8k")


def test_without_a_connection_it_says_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def fail(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(LoadError, match=r"no route to host.*JSONL"):
        load_questions("longbench:hotpotqa")


ROWS = {
    "alpaca": {"instruction": "Add.", "input": "1 2"},
    "cnn-dm": {"article": "A. B."},
    "gsm8k": {"question": "How many?"},
    "humaneval": {"prompt": "def f():"},
    "longbench:hotpotqa": {"context": "C", "input": "I"},
    "mt-bench": {"prompt": ["first", "second"], "category": "stem", "prompt_id": 5},
    "spec-bench": {"turns": ["one"], "category": "qa", "question_id": 6},
    "xsum": {"document": "A. B."},
}


@pytest.mark.parametrize("name", [*HUB_TASKS, "longbench:hotpotqa"])
def test_each_row_of_the_hub_becomes_a_question(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **o: [ROWS[name]])
    (question,) = load_questions(name, per_category=2)
    assert all(question.turns)
    assert question.category in ("stem", "qa", name)
