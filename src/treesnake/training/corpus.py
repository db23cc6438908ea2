"""Text and prompts from data sets at the hub or from local files, row by row.

Everything is read as a stream by the package `datasets`, so a corpus of any size needs no more disk
than what is kept of it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from treesnake.errors import InvalidInputError, TrainingError
from treesnake.files import write_text
from treesnake.training.reporting import Reporter
from treesnake.training.shards import keep_whole, read_notes, shard_path, text_shard, write_shard
from treesnake.training.training_recipe import CorpusStage

FORMATS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet"}
"""What `datasets` calls the format of a file."""

PROMPTS_FILE = "prompts.jsonl"
TOKENS_PER_SHARD = 4_000_000
ROWS_READ = "rows_read"
SHARED_WORDS = 8
"""So many words in a row that a text and an excluded one have in common are overlap."""

ASKERS = ("human", "user")
REPLIERS = ("gpt", "assistant")


@dataclass(frozen=True)
class Exchange:
    """The beginning of a conversation: a prompt, and a reply if there is one."""

    prompt: str
    reply: str


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
        InvalidInputError: if there is no such data set, or it has no such column.
        TrainingError: if nothing can be written.
    """
    excluded = {each for path in stage.exclude for each in excluded_word_runs(Path(path))}
    if stage.content == "prompts":
        _collect_prompts(stage, folder, excluded, reporter)
    else:
        _collect_tokens(stage, folder, tokenizer, vocab_size, excluded, reporter)


def open_rows(stage: CorpusStage, first_row: int = 0) -> Iterator[dict[str, Any]]:
    """Yields the rows of a corpus, from some row on.

    Raises:
        InvalidInputError: if there is no such data set, or it has no such column.
    """
    import datasets  # noqa: PLC0415, for it takes seconds, and few stages need it

    path = Path(stage.source).expanduser()
    local_format = FORMATS.get(path.suffix)
    try:
        if local_format is None:
            rows: Any = datasets.load_dataset(
                stage.source, stage.subset, split=stage.split, streaming=True
            )
        else:
            rows = datasets.load_dataset(
                local_format, data_files=str(path), split="train", streaming=True
            )
        rows = rows.skip(first_row) if first_row else rows
        if stage.max_rows is not None:
            rows = rows.take(max(stage.max_rows - first_row, 0))
        for row in rows:
            if stage.column not in row:
                raise InvalidInputError(
                    f"{stage.source} has no column {stage.column!r}; it has {', '.join(row)}"
                )
            yield row
    except InvalidInputError:
        raise
    except Exception as error:
        raise InvalidInputError(f"the corpus {stage.source} cannot be read: {error}") from error


def read_exchange(value: Any) -> Exchange | None:
    """Reads a prompt or the beginning of a conversation; None for what begins otherwise.

    Conversations are lists of turns, each with "from" and "value" as in ShareGPT, or "role" and
    "content" as in chat templates. System turns in front are passed over.

    Raises:
        InvalidInputError: if it is neither.
    """
    if isinstance(value, str):
        return Exchange(value.strip(), "") if value.strip() else None
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise InvalidInputError(f"{str(value)[:60]!r} is neither a prompt nor a conversation")
    turns = [
        (turn.get("from", turn.get("role")), str(turn.get("value", turn.get("content", ""))))
        for turn in value
    ]
    while turns and turns[0][0] == "system":
        turns = turns[1:]
    if not turns or turns[0][0] not in ASKERS or not turns[0][1].strip():
        return None
    reply = turns[1][1] if len(turns) > 1 and turns[1][0] in REPLIERS else ""
    return Exchange(turns[0][1].strip(), reply.strip())


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Returns a prompt as the target reads it: in its chat template, if it has one."""
    if not tokenizer.chat_template:
        return list(tokenizer.encode(prompt))
    messages = [{"role": "user", "content": prompt}]
    tokens: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(tokens)


def word_runs(text: str) -> set[tuple[str, ...]]:
    """Returns all runs of `SHARED_WORDS` words, without case and punctuation."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}


def excluded_word_runs(path: Path) -> set[tuple[str, ...]]:
    """Returns the runs of words of prompts to be judged by.

    Raises:
        InvalidInputError: if the file has rows without "turns" or "prompt".
    """
    runs: set[tuple[str, ...]] = set()
    try:
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            for text in row["turns"] if "turns" in row else [row["prompt"]]:
                runs |= word_runs(text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f'{path} is no JSONL file of prompts with "turns" or "prompt": {error!r}'
        ) from error
    return runs


def _collect_prompts(
    stage: CorpusStage, folder: Path, excluded: set[tuple[str, ...]], reporter: Reporter
) -> None:
    prompts: dict[str, None] = {}
    num_overlapping = 0
    for row in open_rows(stage):
        reporter.advance(1, {"prompts": len(prompts)})
        exchange = read_exchange(row[stage.column])
        if exchange is None:
            continue
        if excluded and word_runs(exchange.prompt) & excluded:
            num_overlapping += 1
        else:
            prompts[exchange.prompt] = None
    lines = (json.dumps({"source": stage.name, "prompt": prompt}) + "\n" for prompt in prompts)
    path = folder / PROMPTS_FILE
    try:
        write_text(path, "".join(lines))
    except OSError as error:
        raise TrainingError.unwritten(path, error) from error
    reporter.tell(f"{len(prompts)} prompts; {num_overlapping} left out because they overlap")


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
    num_read = int(read_notes(files[-1])[ROWS_READ]) if files else 0
    reporter.advance(num_read, {})
    number = len(files)
    texts: list[tuple[Sequence[int], Sequence[int]]] = []
    num_tokens = 0

    for row in open_rows(stage, num_read):
        num_read += 1
        for prompt, answer in _tokenized(row[stage.column], stage, tokenizer, excluded):
            texts.append((prompt, answer))
            num_tokens += len(prompt) + len(answer)
        reporter.advance(1, {"tokens": num_tokens})
        if num_tokens >= TOKENS_PER_SHARD:
            _write_texts(folder, number, texts, vocab_size, num_read)
            texts.clear()
            number, num_tokens = number + 1, 0
    if texts:
        _write_texts(folder, number, texts, vocab_size, num_read)


def _write_texts(
    folder: Path,
    number: int,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    vocab_size: int,
    num_read: int,
) -> None:
    notes = {ROWS_READ: str(num_read)}
    shard = text_shard(range(len(texts)), texts)
    write_shard(shard_path(folder, number), shard, vocab_size, notes)


def _tokenized(
    value: Any,
    stage: CorpusStage,
    tokenizer: PreTrainedTokenizerBase,
    excluded: set[tuple[str, ...]],
) -> Iterable[tuple[list[int], list[int]]]:
    end = tokenizer.eos_token_id
    ending = [end] if isinstance(end, int) else []
    if stage.content == "replies":
        exchange = read_exchange(value)
        if exchange is None or not exchange.reply or word_runs(exchange.prompt) & excluded:
            return
        reply = tokenizer.encode(exchange.reply, add_special_tokens=False)
        yield prompt_tokens(tokenizer, exchange.prompt), [*reply, *ending]
        return
    if excluded and word_runs(str(value)) & excluded:
        return
    tokens = [*tokenizer.encode(str(value)), *ending]
    for start in range(0, len(tokens), stage.max_tokens):
        if len(part := tokens[start : start + stage.max_tokens]) > 1:
            yield [], part
