"""Text and prompts from data sets at the hub or from local files, row by row.

Everything is read as a stream, so a corpus of any size needs no more disk than what is kept of it.
Rows that nothing can be learned from are left out and counted by reason.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from treesnake.beginnings import encode_text
from treesnake.chat_templates import bounded
from treesnake.conversation import check_turns, joined_text
from treesnake.errors import InvalidInputError, TrainingError
from treesnake.files import write_text
from treesnake.json_lines import (
    NO_OBJECT,
    LeftOutRows,
    Row,
    json_line,
    parse_json,
    read_json_lines,
    read_lines,
    sound_json_lines,
)
from treesnake.training.chat_data import Exchange, clean_text, read_exchange
from treesnake.training.reporting import Reporter
from treesnake.training.shards import keep_whole, read_notes, shard_path, text_shard, write_shard
from treesnake.training.training_recipe import CorpusStage
from treesnake.utf8 import check_path, decode_text, read_text_file

FORMATS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet"}
"""What `datasets` calls the format of a file."""

PROMPTS_FILE = "prompts.jsonl"
TOKENS_PER_SHARD = 4_000_000
ROWS_READ = "rows_read"
SHARED_WORDS = 8
"""So many words in a row that a text and an excluded one have in common are overlap."""

ROWS_FILE = "rows.json"
"""How many rows were read, and how many were left out for what reason."""

LEFT_OUT = "left_out"
ROWS_WITHOUT_COLUMN = 1000
"""If none of so many rows has the column, no row is expected to have it."""

NO_TEXT = "without text"
NO_EXCHANGE = "that do not begin with a text of the user"
NO_REPLY = "without a reply of text"
OVERLAP = "that share eight words with an excluded prompt"
REFUSED = "that the tokenizer refuses"


def collect_corpus(
    stage: CorpusStage,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    reporter: Reporter,
) -> None:
    """Collects a corpus into a folder; what was collected before is kept.

    Args:
        stage: what is collected.
        folder: gets shards of tokens, or a file of prompts.
        tokenizer: the target's.
        vocab_size: the target's.
        reporter: is told the number of rows.

    Raises:
        InvalidInputError: if there is no such data set, it has no such column, or nothing in it can
            be used.
        TrainingError: if nothing can be written.
    """
    excluded_files = [check_path(name, "a file to exclude") for name in stage.exclude]
    excluded = {run for path in excluded_files for run in excluded_word_runs(path)}
    if stage.content == "prompts":
        _collect_prompts(stage, folder, excluded, reporter)
    else:
        _collect_tokens(stage, folder, tokenizer, vocab_size, excluded, reporter)


def read_left_out(folder: Path) -> list[Any]:
    """Returns which rows were left out of a corpus, by reason; nothing where that is not known.

    Args:
        folder: of the corpus.
    """
    try:
        return json.loads((folder / ROWS_FILE).read_text("utf-8"))[LEFT_OUT]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def open_rows(stage: CorpusStage, left_out: LeftOutRows, first_row: int = 0) -> Iterator[Row]:
    """Yields the rows of a corpus that have its columns, from some row on.

    Args:
        stage: what is collected.
        left_out: counts the rows that cannot be read or lack a column.
        first_row: how many rows were read before.

    Raises:
        InvalidInputError: if there is no such data set, or it has no such column.
    """
    path = check_path(stage.source, f'the source of the stage "{stage.name}"')
    kind = FORMATS.get(path.suffix)
    if kind is None and path.is_file():
        raise InvalidInputError(
            f"{path} is of no format that a corpus can have: {', '.join(FORMATS)}"
        )
    if kind == "json":
        rows = _json_rows(path, left_out, first_row)
    elif kind == "text":
        rows = _text_rows(path, left_out, first_row)
    else:
        rows = _data_set_rows(stage, kind, first_row)
    if stage.max_rows is not None:
        last = stage.max_rows
        rows = takewhile(lambda row: row.number <= last, rows)
    return _with_columns(rows, stage, left_out, is_begun=first_row > 0)


def _json_rows(path: Path, left_out: LeftOutRows, first_row: int) -> Iterator[Row]:
    """Yields the objects of lines, or of one list that the file is."""
    listed = _list_in(path) if path.suffix == ".json" else None
    if listed is None:
        yield from sound_json_lines(path, left_out, first_row)
        return
    for number, fields in enumerate(listed[first_row:], first_row + 1):
        if isinstance(fields, dict):
            yield Row(number, f"row {number} of {path}", fields)
        else:
            left_out.add(number, NO_OBJECT)


def _list_in(path: Path) -> list[Any] | None:
    first = next((line for line in read_lines(path) if line.strip()), b"")
    if not first.lstrip(b"\xef\xbb\xbf \t\r").startswith(b"["):
        return None
    try:
        value = parse_json(read_text_file(path), f"{path}")
    except InvalidInputError:
        return None
    return value if isinstance(value, list) else None


def _text_rows(path: Path, left_out: LeftOutRows, first_row: int) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path), 1):
        if number <= first_row:
            continue
        try:
            text = decode_text(line, f"{path}", number).rstrip("\r\n")
        except InvalidInputError:
            left_out.add(number, NO_TEXT)
        else:
            yield Row(number, f"line {number} of {path}", {"text": text})


def _data_set_rows(stage: CorpusStage, kind: str | None, first_row: int) -> Iterator[Row]:
    import datasets  # noqa: PLC0415, for it takes seconds, and few stages need it

    try:
        if kind is None:
            rows: Any = datasets.load_dataset(
                stage.source, stage.subset, split=stage.split, streaming=True
            )
        else:
            path = str(Path(stage.source).expanduser())
            rows = datasets.load_dataset(kind, data_files=path, split="train", streaming=True)
        rows = rows.skip(first_row) if first_row else rows
        if stage.max_rows is not None:
            rows = rows.take(max(stage.max_rows - first_row, 0))
        for number, fields in enumerate(rows, first_row + 1):
            yield Row(number, f"row {number} of {stage.source}", fields)
    except Exception as error:
        raise InvalidInputError(f"the corpus {stage.source} cannot be read: {error}") from error


def _with_columns(
    rows: Iterable[Row], stage: CorpusStage, left_out: LeftOutRows, *, is_begun: bool
) -> Iterator[Row]:
    """Yields rows that have the columns; if none of the first ones has them, none will."""
    columns = [name for name in (stage.column, stage.reply_column) if name is not None]
    error: InvalidInputError | None = None
    for number, row in enumerate(rows, 1):
        lacking = next((name for name in columns if name not in row.fields), None)
        if lacking is None:
            is_begun = True
            yield row
            continue
        left_out.add(row.number, f'without the column "{lacking}"')
        error = _no_column(stage, lacking, row)
        if not is_begun and number == ROWS_WITHOUT_COLUMN:
            raise error
    if error and not is_begun:
        raise error


def _no_column(stage: CorpusStage, lacking: str, row: Row) -> InvalidInputError:
    found = ", ".join(row.fields) or "none"
    return InvalidInputError(f"{stage.source} has no column {lacking!r}; it has {found}")


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Returns a prompt as the target reads it: in its chat template, if it has one."""
    if not tokenizer.chat_template:
        return encode_text(tokenizer, prompt)
    messages = [{"role": "user", "content": prompt}]
    template: Any = partial(
        tokenizer.apply_chat_template, messages, add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer.encode(bounded(template), add_special_tokens=False))


def word_runs(text: str) -> set[tuple[str, ...]]:
    """Returns all runs of `SHARED_WORDS` words, without case and punctuation."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}


def excluded_word_runs(path: Path) -> set[tuple[str, ...]]:
    """Returns the runs of words of prompts to be judged by.

    Args:
        path: a file of JSON lines, each with "turns" or a "prompt": a text, or a list of texts.

    Raises:
        InvalidInputError: naming the line that has neither.
    """
    runs: set[tuple[str, ...]] = set()
    for row in read_json_lines(path):
        name = "turns" if "turns" in row.fields else "prompt"
        for text in check_turns(row.fields.get(name), f'"{name}" of {row.where}'):
            runs |= word_runs(text)
    return runs


def _collect_prompts(
    stage: CorpusStage, folder: Path, excluded: set[tuple[str, ...]], reporter: Reporter
) -> None:
    prompts: dict[str, None] = {}
    left_out = LeftOutRows()
    num_read = 0
    for row in open_rows(stage, left_out):
        reporter.advance(row.number - num_read, {"prompts": len(prompts)})
        num_read = row.number
        exchange = read_exchange(row.fields[stage.column])
        if exchange is None:
            left_out.add(row.number, NO_EXCHANGE)
        elif excluded and word_runs(exchange.prompt) & excluded:
            left_out.add(row.number, OVERLAP)
        else:
            prompts[exchange.prompt] = None
    _check_any(stage, len(prompts), left_out)
    lines = b"".join(json_line({"source": stage.name, "prompt": each}) for each in prompts)
    _write(folder / ROWS_FILE, _account(left_out))
    _write(folder / PROMPTS_FILE, lines.decode())
    reporter.tell(f"{len(prompts)} prompts; {left_out}")


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise TrainingError.unwritten(path, error) from error


def _account(left_out: LeftOutRows) -> str:
    return json.dumps({LEFT_OUT: left_out.as_json()}, indent=1) + "\n"


def _check_any(stage: CorpusStage, num_used: int, left_out: LeftOutRows) -> None:
    if not num_used:
        raise InvalidInputError(
            f'{stage.source} has no row whose "{stage.column}" can be used as '
            f"{stage.content}: {left_out}"
        )


def _collect_tokens(
    stage: CorpusStage,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    excluded: set[tuple[str, ...]],
    reporter: Reporter,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = keep_whole(folder, reporter.tell)
    notes = read_notes(files[-1]) if files else {}
    num_read = int(notes.get(ROWS_READ, 0))
    left_out = LeftOutRows.from_json(json.loads(notes.get(LEFT_OUT, "[]")))
    reporter.advance(num_read, {})
    number = len(files)
    texts: list[tuple[Sequence[int], Sequence[int]]] = []
    num_tokens = 0

    def write() -> None:
        notes = {ROWS_READ: str(num_read), LEFT_OUT: json.dumps(left_out.as_json())}
        _write_texts(folder, number, texts, vocab_size, notes)

    try:
        for row in open_rows(stage, left_out, num_read):
            reporter.advance(row.number - num_read, {"tokens": num_tokens})
            num_read = row.number
            for prompt, answer in _tokenized(row, stage, tokenizer, excluded, left_out):
                texts.append((prompt, answer))
                num_tokens += len(prompt) + len(answer)
            if num_tokens >= TOKENS_PER_SHARD:
                write()
                texts.clear()
                number, num_tokens = number + 1, 0
    except InvalidInputError:  # the source failed in its middle: the next run goes on from here
        if texts:
            write()
        raise
    if texts:
        write()
        number += 1
    _check_any(stage, number, left_out)
    _write(folder / ROWS_FILE, _account(left_out))
    reporter.tell(f"{left_out}")


def _write_texts(
    folder: Path,
    number: int,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    vocab_size: int,
    notes: Mapping[str, str],
) -> None:
    shard = text_shard(range(len(texts)), texts)
    write_shard(shard_path(folder, number), shard, vocab_size, notes)


def _tokenized(
    row: Row,
    stage: CorpusStage,
    tokenizer: PreTrainedTokenizerBase,
    excluded: set[tuple[str, ...]],
    left_out: LeftOutRows,
) -> Iterable[tuple[list[int], list[int]]]:
    """Returns the texts of a row, each a prompt, which may be empty, and what is learned."""
    is_text_alone = stage.content == "text"
    found = _read_text(row, stage) if is_text_alone else _read_reply(row, stage)
    if isinstance(found, str):
        left_out.add(row.number, found)
    elif excluded and word_runs(found.reply if is_text_alone else found.prompt) & excluded:
        left_out.add(row.number, OVERLAP)
    else:
        try:
            return _encoded(found, stage, tokenizer)
        except Exception:  # noqa: BLE001 - tokenizers and templates raise what they like
            left_out.add(row.number, REFUSED)
    return []


def _read_text(row: Row, stage: CorpusStage) -> Exchange | str:
    """Returns a text as a reply to nothing, or why the row has none."""
    value = row.fields[stage.column]
    return Exchange("", value) if clean_text(value) else NO_TEXT


def _read_reply(row: Row, stage: CorpusStage) -> Exchange | str:
    """Returns a prompt with its reply, or why the row has none."""
    exchange = read_exchange(row.fields[stage.column])
    if exchange is None:
        return NO_EXCHANGE
    if stage.reply_column is not None:
        reply = clean_text(joined_text(row.fields[stage.reply_column]))
        exchange = Exchange(exchange.prompt, reply)
    return exchange if exchange.reply else NO_REPLY


def _encoded(
    exchange: Exchange, stage: CorpusStage, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[list[int], list[int]]]:
    end = tokenizer.eos_token_id
    ending = [end] if isinstance(end, int) else []
    if exchange.prompt:
        reply = tokenizer.encode(exchange.reply, add_special_tokens=False)
        return [(prompt_tokens(tokenizer, exchange.prompt), [*reply, *ending])]
    tokens = [*encode_text(tokenizer, exchange.reply), *ending]
    parts = [
        tokens[start : start + stage.max_tokens]
        for start in range(0, len(tokens), stage.max_tokens)
    ]
    return [([], part) for part in parts if len(part) > 1]
