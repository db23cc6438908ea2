"""Questions from files and by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError, LoadError
from treesnake.evaluation import tasks
from treesnake.evaluation.shapeworld.dialogues import TASKS
from treesnake.evaluation.shapeworld.scenes import SIDE
from treesnake.evaluation.tasks import HUB_TASKS, Question, load_questions
from treesnake.images import read_image
from treesnake.utf8 import is_text


def test_a_file_in_spec_benchs_format_is_read(question_file: Path) -> None:
    questions = load_questions(str(question_file))
    assert [question.category for question in questions] == ["loops", "loops", "words"]
    assert questions[0].turns == ("ab ab ab ab", "ab ab")


def test_the_first_of_each_category_are_kept(question_file: Path) -> None:
    assert [q.name for q in load_questions(str(question_file), per_category=1)] == ["1", "3"]
    with pytest.raises(InvalidInputError, match="per_category is at least 1, got 0"):
        load_questions(str(question_file), per_category=0)


BAD_LINES = [
    ("hello", "line 2 of .*q.jsonl, which may be cut off, is no JSON"),
    ("[]", "line 2 of .* must be a JSON object, .*not a list of 0"),
    ("{}", 'line 2 of .* lacks "turns"; it has nothing'),
    ('{"prompt": "Why?"}', "lacks \"turns\"; it has 'prompt'"),
    ('{"turns": 3}', '"turns" of line 2 of .* must be a text or a list of texts, not 3'),
    ('{"turns": null}', "not null"),
    ('{"turns": NaN}', "not nan"),
    ('{"turns": []}', "not a list of 0"),
    ('{"turns": {"a": "x"}}', "not an object with 1 keys"),
    ('{"turns": [null]}', 'turn 1 of "turns" of line 2 of .* must be text, not null'),
    ('{"turns": ["a", ["b"]]}', "turn 2 of .* must be text, not a list of 1"),
    ('{"turns": [{"role": "user", "content": "a"}]}', "must be text, not an object with 2 keys"),
    ('{"turns": [""]}', "turn 1 of .* is empty"),
    ('{"turns": " "}', '"turns" of line 2 of .* is empty'),
    ('{"turns": ["half \\ud83d"]}', "turn 1 of .* is no text in UTF-8"),
    ('{"turns": "a", "turns": "b"}', "the key 'turns' stands there twice"),
    ('{"turns": "a", "category": ["b"]}', "the category of line 2 of .* must be text"),
    ('{"turns": "a", "category": "\\udce9"}', "the category of line 2 of .* is no text in UTF-8"),
    ('{"turns": "a", "question_id": true}', "the id of line 2 of .* must be text, not true"),
    ('{"turns": "a", "question_id": "first"}', "has the name 'first', as line 1 of .* has"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question_id": "first", "turns": ["Why?"]}\n' + line)
    with pytest.raises(InvalidInputError, match=message):
        load_questions(str(path))


@pytest.mark.parametrize("content", ["", "\n", "\ufeff\r\n"])
def test_a_file_without_a_question_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(InvalidInputError, match="holds no question"):
        load_questions(str(path))


def test_one_text_is_one_turn_and_ends_of_lines_are_text(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('\ufeff{"turns": "Why\u2028now?", "category": "a\u0085b"}\r\n', "utf-8")
    (question,) = load_questions(str(path))
    assert question == Question("1", "a\u0085b", ("Why\u2028now?",))


def test_the_category_of_all_questions_is_no_category_of_one(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text('{"turns": ["Why?"]}\n')
    assert [question.category for question in load_questions(str(path))] == ["all.jsonl"]
    path.write_text('{"turns": ["Why?"], "category": "all"}\n')
    with pytest.raises(InvalidInputError, match="stands for all questions"):
        load_questions(str(path))


def test_questions_without_an_id_have_the_number_of_their_line(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"turns": "a"}\n\n{"turns": "b", "question_id": null, "category": null}\n')
    assert [(q.name, q.category) for q in load_questions(str(path))] == [("1", "q"), ("3", "q")]
    path.write_text('{"turns": "a", "question_id": 2}\n{"turns": "b"}\n')
    with pytest.raises(InvalidInputError, match=r"line 2 of .* has the name '2', as line 1 of"):
        load_questions(str(path))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
FIELDS = {"turns": VALUES, "question_id": VALUES, "category": VALUES}


@given(st.lists(st.fixed_dictionaries({}, optional=FIELDS) | VALUES, max_size=3))
@example([{"turns": "a", "question_id": 0}, {"turns": "b", "question_id": "0"}])
@example([{"turns": ["half \ud83d"]}])
def test_whatever_a_file_holds_its_questions_are_texts_or_it_is_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        questions = load_questions(str(path))
    except InvalidInputError:
        return
    assert len({question.name for question in questions}) == len(rows)
    assert all(is_text(text) for q in questions for text in (q.name, q.category, *q.turns))


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


def test_a_row_of_the_hub_without_text_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **o: [{"question": None}])
    with pytest.raises(
        InvalidInputError, match="question of row 0 of gsm8k must be text, not null"
    ):
        load_questions("gsm8k")


def test_pictures_are_drawn_without_files_and_without_a_connection() -> None:
    questions = load_questions("shapeworld", per_category=1)
    assert [question.category for question in questions] == [
        name.replace("_", " ") for name in TASKS
    ]
    num_images = {question.category: len(question.images) for question in questions}
    assert (num_images["story"], num_images["difference"], num_images["facts"]) == (5, 2, 0)
    assert all(read_image(each, "it").size == (SIDE, SIDE) for q in questions for each in q.images)
    assert questions == load_questions("shapeworld")[: len(TASKS)]


def test_images_of_a_question_begin_in_the_folder_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "seen.jsonl"
    path.write_text(
        '{"turns": "What?", "images": "cat.png"}\n'
        '{"turns": ["What?", "Why?"], "images": ["cat.png", "https://example.org/dog.png"]}\n'
        '{"turns": "Who?"}\n'
    )
    cat = str(tmp_path / "cat.png")
    assert [question.images for question in load_questions(str(path))] == [
        (cat,),
        (cat, "https://example.org/dog.png"),
        (),
    ]
    path.write_text('{"turns": "What?", "images": [3]}\n')
    with pytest.raises(InvalidInputError, match='"images" of line 1'):
        load_questions(str(path))
