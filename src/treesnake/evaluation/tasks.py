"""What is asked: questions from local files in Spec-Bench's format, or by name from the hub."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from treesnake.errors import InvalidInputError, LoadError


@dataclass(frozen=True)
class Question:
    """A conversation of one or more turns by the user.

    Attributes:
        name: unique within its task.
        category: what kind of question it is.
        turns: what the user says; each is answered before the next.
    """

    name: str
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class HubTask:
    """Where a task's questions are at the hub, and how a row becomes turns.

    Attributes:
        path: of the data set.
        config: which part of it, if it has several.
        split: "test" where there is one.
        turns: makes the turns of a row.
        data_files: for a plain file on the web, its address; `path` is then its format.
    """

    path: str
    turns: Callable[[Mapping[str, Any]], tuple[str, ...]]
    config: str | None = None
    split: str = "test"
    data_files: str | None = None


def _ask(template: str, *fields: str) -> Callable[[Mapping[str, Any]], tuple[str, ...]]:
    """Returns what makes one turn of some fields of a row."""
    return lambda row: (template.format(*(row[field] for field in fields)).strip(),)


SUMMARIZE = "Summarize the following article in a few sentences.\n\n{}"
SPEC_BENCH = (
    "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"
)

HUB_TASKS: dict[str, HubTask] = {
    "alpaca": HubTask("tatsu-lab/alpaca", _ask("{}\n\n{}", "instruction", "input"), split="train"),
    "cnn-dm": HubTask("abisee/cnn_dailymail", _ask(SUMMARIZE, "article"), config="3.0.0"),
    "gsm8k": HubTask("openai/gsm8k", _ask("{}", "question"), config="main"),
    "humaneval": HubTask(
        "openai/openai_humaneval", _ask("Complete this Python function.\n\n{}", "prompt")
    ),
    "mt-bench": HubTask(
        "HuggingFaceH4/mt_bench_prompts", lambda row: tuple(row["prompt"]), split="train"
    ),
    "spec-bench": HubTask(
        "json", lambda row: tuple(row["turns"]), split="train", data_files=SPEC_BENCH
    ),
    "xsum": HubTask("EdinburghNLP/xsum", _ask(SUMMARIZE, "document")),
}
"""Tasks by name; "longbench:SUBSET" is another."""

LONGBENCH = "longbench:"


def load_questions(source: str, *, per_category: int | None = None) -> list[Question]:
    """Returns the questions of a task.

    Args:
        source: a JSONL file with question_id, category and turns in each line, as Spec-Bench has
            it; or a name of `HUB_TASKS`; or "longbench:SUBSET".
        per_category: the first so many questions of each category; None is all.

    Raises:
        LoadError: if there is no such task, or it cannot be fetched.
        InvalidInputError: if a file is not in that format, or nothing is left.
    """
    if per_category is not None and per_category < 1:
        raise InvalidInputError(f"per_category is at least 1, got {per_category}")
    path = Path(source).expanduser()
    questions = _read_file(path) if path.is_file() else _fetch(source, per_category)
    kept: list[Question] = []
    num_kept: dict[str, int] = {}
    for question in questions:
        number = num_kept.get(question.category, 0)
        if per_category is None or number < per_category:
            num_kept[question.category] = number + 1
            kept.append(question)
    if not kept:
        raise InvalidInputError(f"{source} holds no question")
    return kept


def _read_file(path: Path) -> Iterator[Question]:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            turns = tuple(str(turn) for turn in row["turns"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"line {number} of {path} is no question: it needs a JSON object with a list of "
                f'texts as "turns", got {line[:60]!r}'
            ) from error
        if not turns:
            raise InvalidInputError(f"line {number} of {path} has no turns")
        name = str(row.get("question_id", number))
        yield Question(name, str(row.get("category", path.stem)), turns)


def _fetch(source: str, per_category: int | None) -> Iterator[Question]:
    task = _hub_task(source)
    if find_spec("datasets") is None:
        raise LoadError(
            f"the task {source} comes from the hub by the package datasets; install "
            "treesnake[evaluation], or name a JSONL file in Spec-Bench's format"
        )
    import datasets  # noqa: PLC0415 - an optional dependency

    try:
        rows = datasets.load_dataset(
            task.path, task.config, split=task.split, data_files=task.data_files, streaming=True
        )
        # A whole data set has one category here, unless it says more.
        limit = None if task.data_files or per_category is None else 20 * per_category
        for number, row in enumerate(islice(iter(rows), limit)):
            name = str(row.get("question_id", row.get("prompt_id", number)))
            yield Question(name, str(row.get("category", source)), task.turns(row))
    except Exception as error:
        raise LoadError(
            f"the task {source} could not be fetched from the hub ({type(error).__name__}: "
            f"{error}); without a connection name a JSONL file in Spec-Bench's format"
        ) from error


def _hub_task(source: str) -> HubTask:
    if source.startswith(LONGBENCH) and len(source) > len(LONGBENCH):
        return HubTask(
            "Xnhyacinth/LongBench",
            _ask("{}\n\n{}", "context", "input"),
            config=source.removeprefix(LONGBENCH),
        )
    if source in HUB_TASKS:
        return HUB_TASKS[source]
    names = ", ".join(sorted(HUB_TASKS))
    raise LoadError(
        f"there is no file and no task {source!r}; tasks by name are {names} and longbench:SUBSET"
    )
