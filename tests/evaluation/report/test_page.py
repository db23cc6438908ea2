"""The page, in text and in a browser."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench import Journal, ResultFiles, write_results
from treesnake.evaluation.bench.record import (
    DrafterRecord,
    RunRecord,
    ShapeUse,
    ShownStep,
    StepRecord,
    Tally,
    TurnRecord,
)
from treesnake.evaluation.report import read_result, save_pictures, to_html
from treesnake.evaluation.report.stream_weights import weight_lines
from treesnake.testing.browser import CHROMIUM, browser_page

ENVIRONMENT = {
    "before": {
        "date": "today",
        "commit": "abc",
        "processor": "a processor",
        "threads": 2,
        "gpus": [],
        "load_average": [0.5, 0, 0],
        "versions": {"torch": "2.15"},
    }
}
METHODS = ("plain", "chain(2)", "<b>self-tuning</b>")

STEPS = StepRecord(4, 2, 0.1, 0.2, 0.01, 0.01, Tally((2, 1), (2, 0)), Tally((3, 2), (2, 1)),
                   {"chain(2)": ShapeUse(2, 4, 0.31), "off": ShapeUse(2, 2, 0.1)})  # fmt: skip
TREE = ShownStep(
    "2x1 chosen",
    (5, 6, 7, 8, 9),
    (-1, 0, 0, 1, 2),
    (0, 2, 4),
    (7, 9, 10),
    0.1,
    0.2,
    (1.0, 0.5, 0.25, -1.0, 0.125),
    (" the", " cat", " </script>", "\n", " sat"),
    (" </script>", " sat", " down"),
)
OFF_STEP = ShownStep("off", (10,), (-1,), (0,), (11,), 0.0, 0.1, (), (" down",), (".",))
MIXED = replace(TREE, stream_weights={"M": 0.75, "<T>": 0.25})


def run(method: str, question: str, category: str, seconds: float) -> RunRecord:
    turn = TurnRecord(9, 4, 2, 2, 0.5, seconds, (7, 9, 10, 11), STEPS)
    return RunRecord("pair", method, "task", question, category, "greedy", 0, (turn,))


@pytest.fixture
def result_path(tmp_path: Path) -> Path:
    files = ResultFiles(tmp_path / "made-up.json")
    journal = Journal(
        files.journal, {"name": "made-up", "description": "1 < 2", "methods": METHODS}
    )
    for method, seconds in zip(METHODS, (2.0, 1.5, 1.2), strict=True):
        for category in ("1024 tokens", "4096 tokens", "qa"):
            record = run(method, category, category, seconds)
            if category == "qa":
                turn = replace(record.turns[0], shown=(TREE, OFF_STEP))
                record = replace(record, turns=(turn, turn), asked="Who <sat>?")
            journal.append(replace(record, drafter_bytes=1000))
    journal.append(replace(run("chain(2)", "x", "qa", 1), error="RuntimeError: no", turns=()))
    journal.append(DrafterRecord("pair", "d", "task", "qa", "qa", 4, 1, 2, (1, 3), (0.1, 0.5), (0.2, 0.4)))  # fmt: skip  # noqa: E501
    write_results(files, ENVIRONMENT)
    return files.summary


def test_the_page_needs_nothing_else(result_path: Path) -> None:
    page = to_html([read_result(result_path)])
    assert not re.search(r"(src|href)\s*=|@import|url\(|https?://(?!www\.w3\.org)", page)
    assert page.count("<script") == page.count("</script>") == 2


def test_everything_that_was_measured_is_on_it(result_path: Path) -> None:
    page = to_html([read_result(result_path)])
    for text in ("made-up", "1 &lt; 2", "a processor", "By context length", "Acceptance",
                 "What could not run", "RuntimeError: no", "Drafters beside their targets",
                 "&lt;b&gt;self-tuning&lt;/b&gt;", "Step by step", "by context"):  # fmt: skip
        assert text.lower() in page.lower(), text


def test_the_weights_of_streams_are_drawn_over_the_steps(result_path: Path) -> None:
    assert "Weights of streams" not in to_html([read_result(result_path)])
    journal = Journal(ResultFiles(result_path).journal)
    record = run("chain(2)", "mixed", "qa", 1.0)
    shown = (MIXED, OFF_STEP, replace(MIXED, stream_weights={"M": 1.0, "<T>": 0.0}))
    turns = (replace(record.turns[0], shown=shown),)
    record = replace(record, turns=turns, asked="What?", pictures=("data:image/png;base64,AA",))
    journal.append(record)
    assert [(line.label, line.points) for line in weight_lines(journal.runs[-1])] == [
        ("M", ((1.0, 0.75), (3.0, 1.0))),
        ("<T>", ((1.0, 0.25), (3.0, 0.0))),
    ]
    alone = replace(record.turns[0], shown=(replace(MIXED, stream_weights={"M": 1.0}),))
    assert weight_lines(replace(record, turns=(alone,))) == []
    page = to_html([read_result(result_path)])
    assert "Weights of streams" in page
    assert "&lt;T&gt;" in page
    assert '<p class="asked"><img src="data:image/png;base64,AA" alt="">What?</p>' in page


def test_results_without_records_have_a_page_without_steps(result_path: Path) -> None:
    ResultFiles(result_path).journal.unlink()
    page = to_html([read_result(result_path)])
    assert "Step by step" not in page
    assert "times as fast" in page


@pytest.mark.parametrize("category", ["\u00b2 tokens", " tokens", "-1 tokens", "x tokens"])
def test_a_category_that_only_looks_like_a_length_is_a_name(
    result_path: Path, category: str
) -> None:
    journal = Journal(ResultFiles(result_path).journal)
    journal.append(run("plain", "odd", category, 1.0))
    write_results(ResultFiles(result_path), ENVIRONMENT)
    assert read_result(result_path).lengths("pair", "greedy") == [1024, 4096]


def test_a_category_that_is_named_for_all_questions_has_no_second_row(result_path: Path) -> None:
    journal = Journal(ResultFiles(result_path).journal)
    journal.append(run("plain", "odd", "all", 1.0))
    write_results(ResultFiles(result_path), ENVIRONMENT)
    rows = read_result(result_path).rows("pair", "greedy")
    assert [row.method for row in rows] == list(METHODS)


@pytest.mark.parametrize(("number", "message"), [("NaN", "no numbers"), ("9" * 400, "weights_")])
def test_measures_that_are_no_numbers_are_told(
    result_path: Path, number: str, message: str
) -> None:
    text = re.sub(r'"weights_bytes": \w+', f'"weights_bytes": {number}', result_path.read_text())
    result_path.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        read_result(result_path)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(InvalidInputError, match="no results"):
        read_result(path)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_result(tmp_path / "missing.json")


def test_pictures_are_drawn_for_papers(result_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = save_pictures(read_result(result_path), tmp_path / "pictures")
    assert [path.stem for path in written] == [
        "made-up-speed-1",
        "made-up-acceptance-1",
        "made-up-long-context-1",
    ]
    assert all(path.read_text().startswith("<?xml") for path in written)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page with")
def test_a_browser_draws_the_tree_of_the_most_telling_step(
    result_path: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(to_html([read_result(result_path)]), "utf-8")
    with browser_page(page.as_uri(), tmp_path / "profile") as opened:
        drawn = opened.html
    tree = drawn[drawn.index('id="tree"') :]
    assert tree.count('class="accepted"') == 4, "two nodes and the edges to them"
    assert tree.count('<g class="rejected"') == 2
    assert tree.count('<g class="own"') == 1
    assert "50%" in tree
    assert "Step 1 of 4" in drawn
    text = drawn[drawn.index('id="text"') : drawn.index('id="caption"')]
    assert text.count("by-drafter") == 4
    assert text.count("by-target") == 4
    assert "<hr>" in text
