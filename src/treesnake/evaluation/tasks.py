"""What is asked: questions from files in Spec-Bench's format, by name from the hub, or drawn."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from random import Random

from treesnake.conversation import check_turns
from treesnake.errors import InvalidInputError, LoadError
from treesnake.evaluation.shapeworld.dialogues import TASKS
from treesnake.evaluation.shapeworld.scenes import as_png, draw
from treesnake.images import DATA, WEB, png_address
from treesnake.json_lines import Row, read_json_lines
from treesnake.utf8 import check_path, check_text, described


@dataclass(frozen=True)
class Question:
    """A conversation of one or more turns by the user.

    Attributes:
        name: unique within its task.
        category: what kind of question it is.
        turns: what the user says; each is answered before the next.
        images: paths or addresses of images that the first turn is about.
    """

    name: str
    category: str
    turns: tuple[str, ...]
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class HubTask:
    """Where a task's questions are at the hub, and how a row becomes turns.

    Attributes:
        path: of the data set.
        turns: makes the turns of a row.
        config: which part of it, if it has several.
        split: "test" where there is one.
        data_files: for a plain file on the web, its address; `path` is then its format.
    """

    path: str
    turns: Callable[[Row], tuple[str, ...]]
    config: str | None = None
    split: str = "test"
    data_files: str | None = None


def _ask(template: str, *fields: str) -> Callable[[Row], tuple[str, ...]]:
    """Returns what makes one turn of some fields of a row."""
    return lambda row: (
        template.format(
            *(check_text(row.field(name), f"{name} of {row.where}") for name in fields)
        ).strip(),
    )


def _take(name: str) -> Callable[[Row], tuple[str, ...]]:
    """Returns what takes the turns from a field of a row."""
    return lambda row: check_turns(row.field(name), f'"{name}" of {row.where}')


ALL = "all"
"""The category of tables that takes all questions, so no question has it."""

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
    "mt-bench": HubTask("HuggingFaceH4/mt_bench_prompts", _take("prompt"), split="train"),
    "spec-bench": HubTask("json", _take("turns"), split="train", data_files=SPEC_BENCH),
    "xsum": HubTask("EdinburghNLP/xsum", _ask(SUMMARIZE, "document")),
}
"""Tasks by name; "longbench:SUBSET" is another."""

LONGBENCH = "longbench:"

DRAWN = "shapeworld"
"""The task about pictures that are drawn."""

MOST_DRAWN = 16
"""So many of its questions there are in each category, unless it is said."""

FIRST_DRAWN = 30_000
"""Its dialogues begin with this seed, those of training with smaller ones."""


NAME_FIELDS = ("question_id", "prompt_id")


def load_questions(source: str, *, per_category: int | None = None) -> list[Question]:
    """Returns the questions of a task.

    Args:
        source: a file of JSON lines in Spec-Bench's format; or a name of `HUB_TASKS`; or
            "longbench:SUBSET". A line of a file has "turns", a text or a list of texts. It may have
            "question_id", a text or a whole number that no other line has, and "category", a text;
            without them the line's number and the file's name are taken. "images" are those of the
            first turn: an address or a path from the file's folder, or a list of them. "shapeworld"
            asks about pictures of coloured shapes, and needs neither files nor a connection.
        per_category: the first so many questions of each category; None is all.

    Raises:
        LoadError: if there is no such task, or it cannot be fetched.
        InvalidInputError: naming file and line, if a file is not in that format; or if nothing is
            left.
    """
    if per_category is not None and per_category < 1:
        raise InvalidInputError(f"per_category is at least 1, got {per_category}")
    path = check_path(source, "the name of a task")
    if path.is_file():
        questions = _read_file(path)
    elif source == DRAWN:
        questions = _draw(per_category or MOST_DRAWN)
    else:
        questions = _fetch(source, per_category)
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
    category = path.name if path.stem == ALL else path.stem
    return _questions(
        read_json_lines(path), _take("turns"), category, partial(_images, path.parent)
    )


def _images(folder: Path, row: Row) -> tuple[str, ...]:
    """Returns the images of a row; their paths begin in the folder of its file."""
    value = row.fields.get("images")
    if value is None:
        return ()
    return tuple(
        name if name.startswith((*WEB, DATA)) else str(folder / name)
        for name in check_turns(value, f'"images" of {row.where}')
    )


def _no_images(row: Row) -> tuple[str, ...]:
    return ()


def _questions(
    rows: Iterable[Row],
    turns: Callable[[Row], tuple[str, ...]],
    category: str,
    images: Callable[[Row], tuple[str, ...]],
) -> Iterator[Question]:
    """Yields a question for each row; names are unique."""
    found: dict[str, str] = {}
    for row in rows:
        given = next(
            (row.fields[key] for key in NAME_FIELDS if row.fields.get(key) is not None), None
        )
        name = _label(row.number if given is None else given, f"the id of {row.where}")
        if name in found:
            raise InvalidInputError(
                f"{row.where} has the name {described(name)}, as {found[name]} has; give every "
                "question a question_id of its own"
            )
        found[name] = row.where
        kind = row.fields.get("category")
        kind = category if kind is None else _label(kind, f"the category of {row.where}")
        if kind == ALL:
            raise InvalidInputError(
                f'the category of {row.where} is "{ALL}", which stands for all questions in '
                "tables; leave it out or give it another name"
            )
        yield Question(name, kind, turns(row), images(row))


def _label(value: object, where: str) -> str:
    """Returns a name or a category: a text, or a number as text."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 64:
        return str(value)
    if not check_text(value, where).strip():
        raise InvalidInputError(f"{where} is empty; write a text, or leave it out")
    return str(value)


def _draw(per_category: int) -> Iterator[Question]:
    """Yields questions about pictures, one of each kind of dialogue after the other."""
    for number in range(per_category):
        for name, make in TASKS.items():
            rng = Random(FIRST_DRAWN + number)
            dialogue = make(rng)
            pictures = tuple(png_address(as_png(draw(scene, rng))) for scene in dialogue.scenes)
            turns = tuple(turn.question for turn in dialogue.turns)
            yield Question(f"{name}-{number}", name.replace("_", " "), turns, pictures)


def _fetch(source: str, per_category: int | None) -> Iterator[Question]:
    task = _hub_task(source)
    if find_spec("datasets") is None:
        raise LoadError(
            f"the task {source} comes from the hub by the package datasets; install "
            "treesnake[evaluation], or name a JSONL file in Spec-Bench's format"
        )
    # A whole data set has one category here, unless it says more.
    limit = None if task.data_files or per_category is None else 20 * per_category
    return _questions(islice(_hub_rows(source, task), limit), task.turns, source, _no_images)


def _hub_rows(source: str, task: HubTask) -> Iterator[Row]:
    import datasets  # noqa: PLC0415 - an optional dependency

    try:
        rows = datasets.load_dataset(
            task.path, task.config, split=task.split, data_files=task.data_files, streaming=True
        )
        for number, fields in enumerate(iter(rows)):
            yield Row(number, f"row {number} of {source}", fields)
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
    names = ", ".join(sorted([*HUB_TASKS, DRAWN]))
    raise LoadError(
        f"there is no file and no task {source!r}; tasks by name are {names} and longbench:SUBSET"
    )
