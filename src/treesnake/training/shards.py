"""Texts to learn from, on disk: safetensors files, each of some prompts and what follows them.

A shard holds the prompt of each text, which may be empty, and the answer, which is learned; and for
answers of the target also the most probable tokens at each of their positions. Token ids take two
bytes where the vocabulary allows it. A file that is there is whole: it is written beside, then
renamed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Integer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from treesnake.errors import TrainingError
from treesnake.files import replacing
from treesnake.training.answering import Answer

SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Shard:
    """Some texts.

    Attributes:
        prompt_index: which prompt of its source each text has.
        prompt_lengths: tokens of each prompt.
        answer_lengths: tokens of each answer.
        prompts: the tokens of all prompts, one after the other.
        answers: the tokens of all answers.
        top_ids: at each token of the answers the most probable ones, best first.
        top_log_probs: the target's log probabilities of them.
    """

    prompt_index: Integer[Tensor, " texts"]
    prompt_lengths: Integer[Tensor, " texts"]
    answer_lengths: Integer[Tensor, " texts"]
    prompts: Integer[Tensor, " prompt_tokens"]
    answers: Integer[Tensor, " answer_tokens"]
    top_ids: Integer[Tensor, "answer_tokens top"] | None = None
    top_log_probs: Float[Tensor, "answer_tokens top"] | None = None

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @cached_property
    def prompt_starts(self) -> list[int]:
        """Where each prompt begins."""
        return (self.prompt_lengths.cumsum(0) - self.prompt_lengths).tolist()

    @cached_property
    def answer_starts(self) -> list[int]:
        """Where each answer begins."""
        return (self.answer_lengths.cumsum(0) - self.answer_lengths).tolist()


def answers_shard(prompt_index: Sequence[int], answers: Sequence[Answer]) -> Shard:
    """Packs answers of the target."""
    return Shard(
        prompt_index=torch.tensor(prompt_index),
        prompt_lengths=torch.tensor([len(each.prompt) for each in answers]),
        answer_lengths=torch.tensor([len(each.tokens) for each in answers]),
        prompts=torch.cat([torch.tensor(each.prompt, dtype=torch.int64) for each in answers]),
        answers=torch.cat([each.tokens for each in answers]),
        top_ids=torch.cat([each.top_ids for each in answers]),
        top_log_probs=torch.cat([each.top_log_probs for each in answers]),
    )


def text_shard(
    text_index: Sequence[int], texts: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Shard:
    """Packs pairs of a prompt, which may be empty, and what follows it."""
    return Shard(
        prompt_index=torch.tensor(text_index),
        prompt_lengths=torch.tensor([len(prompt) for prompt, _ in texts]),
        answer_lengths=torch.tensor([len(answer) for _, answer in texts]),
        prompts=torch.tensor([token for prompt, _ in texts for token in prompt]).long(),
        answers=torch.tensor([token for _, answer in texts for token in answer]).long(),
    )


def write_shard(
    path: Path, shard: Shard, vocab_size: int, notes: Mapping[str, str] | None = None
) -> None:
    """Writes a shard, whole or not at all.

    Args:
        path: what the file is called in the end.
        shard: the texts.
        vocab_size: above 65536, token ids take four bytes.
        notes: text that the file carries along.

    Raises:
        TrainingError: if it cannot be written, as on a full disk.
    """
    id_dtype = torch.uint16 if vocab_size <= 1 << 16 else torch.int32
    dtypes = {"prompts": id_dtype, "answers": id_dtype, "top_ids": id_dtype}
    dtypes["top_log_probs"] = torch.float16
    tensors = {
        name: tensor.to("cpu", dtypes.get(name, torch.int64)).contiguous()
        for name in Shard.__dataclass_fields__
        if (tensor := getattr(shard, name)) is not None
    }
    try:
        with replacing(path) as partial:
            save_file(tensors, partial, metadata=dict(notes or {}))
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path} cannot be written: {error}; what was written before is whole, so make room "
            "and run the same command again"
        ) from error


def read_shard(path: Path) -> Shard:
    """Opens a shard; its tensors are read when they are used.

    Raises:
        TrainingError: if the file is broken.
    """
    try:
        tensors = load_file(path)
        return Shard(**tensors)
    except (OSError, SafetensorError, TypeError) as error:
        raise TrainingError(
            f"{path} is no shard of texts: {error}; delete it and run the same command again"
        ) from error


def read_notes(path: Path) -> dict[str, str]:
    """Returns the text that a shard carries along."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} is broken: {error}; delete it, and the later ones") from error


def shard_files(folder: Path) -> list[Path]:
    """Returns the shards of a folder in order."""
    return sorted(folder.glob(f"*{SUFFIX}"))
