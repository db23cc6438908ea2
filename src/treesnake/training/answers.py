"""The target answers prompts, shard by shard, until all are answered.

Which prompts a shard has depends on the list of prompts alone: windows of the list are sorted by
length and cut into batches. So a run that ended goes on with the shards that are missing, and
several processes each take every so many-th batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from treesnake.errors import InvalidInputError, TrainingError
from treesnake.json_lines import read_json_lines
from treesnake.training.answering import Answer, Answerer, AnswerOptions, answer
from treesnake.training.corpus import prompt_tokens
from treesnake.training.reporting import Reporter
from treesnake.training.rewriting import rewritten_shard
from treesnake.training.shards import (
    answers_shard,
    is_whole,
    shard_files,
    shard_path,
    write_shard,
)
from treesnake.training.training_recipe import AnswersStage
from treesnake.utf8 import check_text

WINDOW = 1024
"""Prompts that are sorted by length at once."""

SHARDS_PER_WINDOW = 100
"""Numbers of files that a window has at its disposal, if its batches are not smaller than that."""


@dataclass(frozen=True)
class AnswerBatch:
    """Prompts that are answered at once, into one shard."""

    number: int
    prompt_index: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...]


def read_prompts(files: Sequence[Path]) -> list[str]:
    """Returns the prompts of some files of JSON lines, each once.

    Raises:
        InvalidInputError: naming file and line, if a row has no text as "prompt".
    """
    prompts: dict[str, None] = {}
    for path in files:
        for row in read_json_lines(path):
            prompt = check_text(row.field("prompt"), f'"prompt" of {row.where}')
            if not prompt.strip():
                raise InvalidInputError(f'"prompt" of {row.where} is empty; leave the line out')
            prompts[prompt] = None
    return list(prompts)


def answer_batches(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, stage: AnswersStage
) -> Iterator[AnswerBatch]:
    """Yields the batches in order; prompts that are too long are in none."""
    per_window = max(SHARDS_PER_WINDOW, -(-WINDOW // stage.batch_size))
    for number, start in enumerate(range(0, len(prompts), WINDOW)):
        tokenized = [
            (tuple(prompt_tokens(tokenizer, prompt)), start + index)
            for index, prompt in enumerate(prompts[start : start + WINDOW])
        ]
        short = [pair for pair in tokenized if 0 < len(pair[0]) <= stage.max_prompt_tokens]
        short.sort(key=lambda pair: (len(pair[0]), pair[1]))
        for first in range(0, len(short), stage.batch_size):
            part = short[first : first + stage.batch_size]
            yield AnswerBatch(
                number=number * per_window + first // stage.batch_size,
                prompt_index=tuple(index for _, index in part),
                prompts=tuple(tokens for tokens, _ in part),
            )


def answer_prompts(
    answerer: Answerer,
    prompts: Sequence[str],
    stage: AnswersStage,
    folder: Path,
    *,
    written_with: PreTrainedTokenizerBase | None = None,
    seed: int,
    share: tuple[int, int],
    reporter: Reporter,
) -> None:
    """Answers the prompts that have no answers yet.

    Args:
        answerer: the model that answers.
        prompts: as text, each once.
        stage: how it answers.
        folder: of the shards.
        written_with: the tokenizer whose tokens are kept, if not those of the answerer.
        seed: of sampled answers.
        share: this process's number, and the number of processes.
        reporter: is told the number of prompts.

    Raises:
        TrainingError: if a shard cannot be written, or memory is short.
        InvalidInputError: if the folder holds answers to other prompts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    strangers = {*shard_files(folder)}
    options = AnswerOptions(
        stage.max_new_tokens, stage.temperature, stage.num_top, answerer.end_tokens
    )
    num_tokens = answerer.network.vocab_size if written_with is None else len(written_with)
    num_left_out = len(prompts)
    for index, batch in enumerate(answer_batches(prompts, answerer.tokenizer, stage)):
        num_left_out -= len(batch.prompts)
        path = shard_path(folder, batch.number)
        strangers.discard(path)
        if index % share[1] != share[0]:
            continue
        if not is_whole(path):
            batch_seed = seed * 1_000_003 + batch.number
            answers = _answered(answerer, batch, options, batch_seed, stage.name, folder)
            if written_with is None:
                shard = answers_shard(batch.prompt_index, answers, stage.temperature)
            else:
                shard = rewritten_shard(
                    batch.prompt_index, prompts, answers, answerer, written_with
                )
            write_shard(path, shard, num_tokens)
        reporter.advance(len(batch.prompts) * share[1], {})
    if strangers:
        raise InvalidInputError(
            f"{min(strangers)} holds answers to none of these prompts; take it out of {folder}"
        )
    if num_left_out:
        reporter.tell(
            f"{num_left_out} prompts left out, for they have no token or more than "
            f"{stage.max_prompt_tokens}"
        )


def _answered(
    answerer: Answerer,
    batch: AnswerBatch,
    options: AnswerOptions,
    seed: int,
    stage_name: str,
    folder: Path,
) -> list[Answer]:
    try:
        return answer(answerer.network, batch.prompts, options, seed)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f'the stage "{stage_name}" answers {len(batch.prompts)} prompts at once, for which the '
            f"device has no memory; choose a smaller batch_size, delete {folder} and run the same "
            f"command again: {error}"
        ) from error
