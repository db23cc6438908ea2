"""Door: files of questions and of texts, as benchmarks and trainings read them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from transformers import AutoTokenizer

from fuzzing import models
from fuzzing.cases import Case, Opened
from fuzzing.mutations import ODD_VALUES, mutate_bytes, mutate_file, mutate_value, to_json
from treesnake.evaluation.tasks import load_questions
from treesnake.loading.gguf_tokenizer import build_tokenizer
from treesnake.training.answers import read_prompts
from treesnake.training.corpus import PROMPTS_FILE, collect_corpus, excluded_word_runs, word_runs
from treesnake.training.reporting import NoReporter
from treesnake.training.shards import read_shard, shard_files
from treesnake.training.training_recipe import CorpusStage

ROWS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "questions": (
        {"question_id": 1, "category": "loops", "turns": ["ab ab ab", "and then"]},
        {"question_id": 2, "category": "words", "turns": ["one two\u2028three"]},
        {"question_id": 3, "category": "words", "turns": ["a tree of snakes"]},
        {"question_id": 4, "category": "loops", "turns": ["naïve \U0001f40d"]},
    ),
    "prompts": (
        {"source": "a", "prompt": "one two"},
        {"source": "a", "prompt": "three four"},
        {"source": "b", "prompt": "five\nsix"},
    ),
    "excluded": (
        {"turns": ["one two three four five six seven eight nine"]},
        {"prompt": "a b c d e f g h i j"},
    ),
    "texts": ({"text": "one two three"}, {"text": "four five six"}, {"text": "seven\u0085eight"}),
    "conversations": (
        {
            "text": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "one two"},
                {"role": "assistant", "content": "three"},
            ]
        },
        {"text": [{"from": "human", "value": "four"}, {"from": "gpt", "value": "five six"}]},
        {"text": "a question alone"},
    ),
    "replies": (
        {
            "text": [
                {"role": "user", "content": "one two"},
                {"role": "assistant", "content": "three"},
            ]
        },
        {"text": [{"from": "human", "value": "four"}, {"from": "gpt", "value": "five six"}]},
    ),
    "lines": ({"text": "one two three"}, {"text": "four five six"}),
}


class QuestionFiles:
    """Rows of JSON: questions, prompts, texts, conversations; and lines of text."""

    specimens: Sequence[str] = tuple(ROWS)

    def prepare(self, folder: Path) -> None:
        build_tokenizer(models.tokenizer_metadata()).save_pretrained(folder)

    def case(
        self, specimens: Path, specimen: str, work: Path, random: Random, num_mutations: int
    ) -> Case:
        files = work / "the-rows"
        files.mkdir()
        is_text = specimen == "lines"
        path = files / ("rows.txt" if is_text else "rows.jsonl")
        path.write_bytes(_as_text(ROWS[specimen]) if is_text else _as_lines(ROWS[specimen]))
        change = mutate_bytes if is_text else _mutate_lines
        done = tuple(mutate_file(path, random, change) for _ in range(num_mutations))
        read = partial(_READERS[specimen], path, specimens, work / "made")
        return Case(
            specimen,
            done,
            files,
            read,
            partial(_said, path, is_text),
            partial(_invented, is_whole=num_mutations == 0),
        )


def _as_lines(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _as_text(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(f"{row['text']}\n" for row in rows).encode()


def _mutate_lines(content: bytes, random: Random) -> tuple[bytes, str]:
    """Changes one row, or the lines around it."""
    lines = content.split(b"\n")
    index = random.randrange(len(lines))
    try:
        row = json.loads(lines[index])
    except (ValueError, RecursionError):
        return mutate_bytes(content, random)
    match random.randrange(8):
        case 0:
            lines[index] = to_json(random.choice(ODD_VALUES)).replace(b"\n", b"")
            said = "an odd row"
        case 1:
            lines.insert(index, lines[index])
            said = "twice"
        case 2:
            lines.insert(
                index, random.choice((b"", b"  ", b"\x00", b"//", b"null", b"\xef\xbb\xbf"))
            )
            said = f"{lines[index]!r} in front"
        case 3:
            lines[index] = json.dumps(row, indent=1).encode()
            said = "on several lines"
        case _:
            changed, said = mutate_value(row, random)
            lines[index] = to_json(changed).replace(b"\n", b"")
    return b"\n".join(lines), f"row {index}: {said}"


def _read_questions(path: Path, *_: Path) -> Opened:
    found = load_questions(str(path))
    names = [question.name for question in found]
    if len({*names}) < len(names):
        raise AssertionError(f"two questions have one name: {names}")
    return [turn for question in found for turn in question.turns]


def _read_prompts(path: Path, *_: Path) -> Opened:
    return read_prompts([path])


def _read_excluded(path: Path, *_: Path) -> Opened:
    return sorted(" ".join(run) for run in excluded_word_runs(path))


def _collect(content: Any, path: Path, tokenizer_folder: Path, made: Path) -> Opened:
    """Collects a corpus; returns its prompts or the texts of its shards."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    stage = CorpusStage(name="c", source=str(path), content=content, column="text")
    collect_corpus(stage, made, tokenizer, models.VOCAB_SIZE, NoReporter())
    if content == "prompts":
        return read_prompts([made / PROMPTS_FILE])
    texts: list[str] = []
    for shard in map(read_shard, shard_files(made)):
        parts = shard.answers.tolist()
        for start, length in zip(shard.answer_starts, shard.answer_lengths.tolist(), strict=True):
            tokens = [token for token in parts[start : start + length] if token > 2]
            texts.append(tokenizer.decode(tokens))
    return texts


LONG = 1000
"""Characters of a text that a corpus may cut."""

_READERS: Mapping[str, Callable[..., Opened]] = {
    "questions": _read_questions,
    "prompts": _read_prompts,
    "excluded": _read_excluded,
    "texts": partial(_collect, "text"),
    "conversations": partial(_collect, "prompts"),
    "replies": partial(_collect, "replies"),
    "lines": partial(_collect, "text"),
}


def _said(path: Path, is_text: bool) -> Opened:
    """Returns every string of a file, and the runs of words of each."""
    text = path.read_bytes().decode("utf-8-sig", "replace")
    if is_text:
        strings = text.split("\n")
    else:
        strings = [each for row in _rows(text) for each in _strings(row)]
    stripped = {each.strip() for each in strings} | {*strings}
    runs = {" ".join(run) for each in strings for run in word_runs(each)}
    return sorted(each.encode("utf-8", "replace").decode() for each in stripped | runs)


def _rows(text: str) -> Iterator[Any]:
    """Yields every value of a file, also those on several lines, for readers that allow them."""
    decoder = json.JSONDecoder()
    position = 0
    while position < len(text):
        try:
            value, position = decoder.raw_decode(text, position)
            yield value
        except ValueError:
            position += 1
        except RecursionError:  # from the next brace on it would be as deep
            position = text.find("\n", position) % (len(text) + 1)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _invented(opened: Sequence[str], said: Sequence[str], *, is_whole: bool) -> str | None:
    """Returns a text that was read and stands nowhere in the file, not even in a long one."""
    known = {*said}
    long_texts = [text for text in said if len(text) > LONG]
    for text in opened:
        is_known = text in known or text.strip() in known
        if not is_known and not any(text in each for each in long_texts):
            return f"{text[:100]!r} stands nowhere in the file"
    return "nothing was read" if is_whole and not opened else None
