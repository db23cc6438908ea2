"""Door: what a benchmark leaves behind, gone on with and shown."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import models
from fuzzing.cases import Case, Opened
from fuzzing.command_line import CommandError, run_command
from fuzzing.mutations import mutate_bytes, mutate_file, mutate_json, mutate_value, to_json
from fuzzing.toml_files import to_toml
from treesnake import errors
from treesnake.evaluation.bench import ResultFiles, write_results

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "methods": ["plain", "chain(2)"],
    "max_new_tokens": 6,
    "threads": 1,
    "num_agreement": 1,
    "pairs": {
        "tiny": {
            "target": "the-target",
            "drafter": "prompt-lookup",
            "dtype": "float32",
            "device": "cpu",
        }
    },
    "tasks": [{"source": "questions.jsonl", "name": "questions"}],
}
QUESTIONS = (
    {"question_id": 1, "category": "loops", "turns": ["ab ab ab ab", "ab ab"]},
    {"question_id": 2, "category": "words", "turns": ["one two one two"]},
    {"question_id": 3, "category": "words", "turns": ["a tree of snakes"]},
)
SECONDS = 0.25
"""What all times in a specimen are, so that it has the same bytes every time."""

JOURNAL, SUMMARY = "r.log.jsonl", "r.json"
OWN_ERRORS = tuple(vars(errors))


class LostRecordsError(Exception):
    """A command ended with an error, and records that were whole are gone."""


class Journals:
    """A whole benchmark and a half one, with which `bench` goes on, and a page of `report`."""

    specimens: Sequence[str] = ("finished", "half", "report")

    def prepare(self, folder: Path) -> None:
        models.save_model("llama", folder / "the-target")
        (folder / "recipe.toml").write_bytes(to_toml(RECIPE))
        rows = (json.dumps(question) + "\n" for question in QUESTIONS)
        (folder / "questions.jsonl").write_text("".join(rows))
        os.chdir(folder)
        run_command("bench", "recipe.toml", "-o", f"finished/{SUMMARY}")
        journal = folder / "finished" / JOURNAL
        header, *records = map(json.loads, journal.read_text().splitlines())
        lines = [header, *map(_without_times, records)]
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_results(ResultFiles(folder / "finished" / SUMMARY), {})
        shutil.copytree(folder / "finished", folder / "report")
        (folder / "half").mkdir()
        half = journal.read_text().splitlines(keepends=True)[:4]
        (folder / "half" / JOURNAL).write_text("".join(half))

    def case(
        self, specimens: Path, specimen: str, work: Path, random: Random, num_mutations: int
    ) -> Case:
        for name in ("the-target", "recipe.toml", "questions.jsonl"):
            (work / name).symlink_to(specimens / name)
        files = work / "the-results"
        shutil.copytree(specimens / specimen, files)
        done = tuple(_mutate(files, random) for _ in range(num_mutations))
        if specimen == "report":
            return Case(specimen, done, files, partial(_report, files), lambda: True)
        before = _whole_lines(files / JOURNAL)
        keys = _keys(_whole_lines(specimens / "finished" / JOURNAL))
        meant = {"lines": [*map(_plain, before)], "keys": keys}
        return Case(specimen, done, files, partial(_resume, files), lambda: meant, _differ)


def _mutate(folder: Path, random: Random) -> str:
    files = (path for path in folder.iterdir() if not path.is_dir())
    known = sorted(path for path in files if not path.name.startswith("."))
    if not known:
        return "no file is left"
    path = random.choice(known)
    if path.name == JOURNAL:
        return mutate_file(path, random, _mutate_journal)
    return mutate_file(path, random, mutate_json if path.suffix == ".json" else mutate_bytes)


def _mutate_journal(content: bytes, random: Random) -> tuple[bytes, str]:
    """Changes a record, or the order of records."""
    lines = content.split(b"\n")
    index = random.randrange(len(lines))
    try:
        record = json.loads(lines[index])
    except (ValueError, RecursionError):
        return mutate_bytes(content, random)
    match random.randrange(8):
        case 0:
            del lines[index]
            said = "dropped"
        case 1:
            lines.insert(index, lines[index])
            said = "twice"
        case 2:
            other = random.randrange(len(lines))
            lines[index], lines[other] = lines[other], lines[index]
            said = f"changes places with {other}"
        case 3:
            lines.insert(index, random.choice((b"", b"null", b"[]", b"{}", b"1", b'"a"', b"\xff")))
            said = f"{lines[index]!r} in front"
        case _:
            changed, said = mutate_value(record, random)
            lines[index] = to_json(changed).replace(b"\n", b"")
    return b"\n".join(lines), f"record {index}: {said}"


def _without_times(value: Any) -> Any:
    if isinstance(value, float):
        return SECONDS
    if isinstance(value, dict):
        sizes = {"weights_bytes", "growth_bytes"}
        return {key: 1000 if key in sizes else _without_times(item) for key, item in value.items()}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _resume(files: Path) -> Opened:
    journal = files / JOURNAL
    before = _whole_lines(journal)
    try:
        run_command("bench", "recipe.toml", "-o", files / SUMMARY)
    except CommandError:
        if lost := _lost(before, _whole_lines(journal)):
            raise LostRecordsError(
                f"{len(lost)} records of {len(before)}: {lost[0][:80]}"
            ) from None
        raise
    after = _whole_lines(journal)
    return {"lines": [*map(_plain, after)], "keys": _keys(after), "errors": [*_bare_errors(after)]}


def _report(files: Path) -> Opened:
    run_command("report", files / SUMMARY, "-o", files / "r.html")
    return "</html>" in (files / "r.html").read_text("utf-8")


def _whole_lines(journal: Path) -> list[Any]:
    """Returns what stands in the lines of a journal that can be read."""
    if not journal.is_file():
        return []
    lines = []
    for line in journal.read_bytes().split(b"\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return lines


def _plain(line: Any) -> str:
    return json.dumps(line, sort_keys=True)


def _keys(lines: Sequence[Any]) -> list[str]:
    """Returns which questions have an answer of which method."""
    records = [line for line in lines if isinstance(line, dict) and line.get("kind") == "run"]
    return sorted({f"{record.get('method')} {record.get('question')}" for record in records})


def _lost(before: Sequence[Any], after: Sequence[Any]) -> list[str]:
    kept = {*map(_plain, after)}
    return [line for line in map(_plain, before) if line not in kept]


def _bare_errors(lines: Sequence[Any]) -> Iterator[str]:
    for line in lines:
        said = line.get("error") if isinstance(line, dict) else None
        if isinstance(said, str) and said.partition(":")[0] not in OWN_ERRORS:
            yield said


def _differ(opened: Mapping[str, Any], meant: Mapping[str, Any]) -> str | None:
    lost = [line for line in meant["lines"] if line not in opened["lines"]]
    if lost:
        return f"{len(lost)} records are gone: {lost[0][:100]}"
    if missing := [key for key in meant["keys"] if key not in opened["keys"]]:
        return f"no record of {missing}"
    return f"recorded as {opened['errors'][0]}" if opened["errors"] else None
