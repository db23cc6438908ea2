"""Texts to learn from, on disk: safetensors files, each of some prompts and what follows them.

A shard holds the prompt of each text, which may be empty, and the answer, which is learned; and for
answers of the target also the most probable tokens at each of their positions. Token ids take two
bytes where the vocabulary allows it. A file that is there is whole: it is written beside, then
renamed. It carries a digest of its tensors, by which a run that goes on knows it again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
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
NOTES_ENTRY, DIGEST_NOTE = "treesnake", "sha256"


@dataclass(frozen=True, eq=False)
class Shard:
    """Some texts.

    Attributes:
        prompt_index: which prompt of its source each text has.
        prompt_lengths: tokens of each prompt.
        answer_lengths: tokens of each answer.
        prompts: the tokens of all prompts, one after the other.
        answers: the tokens of all answers.
        temperatures: at which the target drew each answer; 0 for what it did not draw.
        top_ids: at each token of the answers the most probable ones, best first.
        top_log_probs: the target's log probabilities of them.
    """

    prompt_index: Integer[Tensor, " texts"]
    prompt_lengths: Integer[Tensor, " texts"]
    answer_lengths: Integer[Tensor, " texts"]
    prompts: Integer[Tensor, " prompt_tokens"]
    answers: Integer[Tensor, " answer_tokens"]
    temperatures: Float[Tensor, " texts"]
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


def answers_shard(
    prompt_index: Sequence[int], answers: Sequence[Answer], temperature: float
) -> Shard:
    """Packs answers that the target drew at a temperature."""
    return Shard(
        prompt_index=torch.tensor(prompt_index),
        prompt_lengths=torch.tensor([len(each.prompt) for each in answers]),
        answer_lengths=torch.tensor([len(each.tokens) for each in answers]),
        prompts=torch.cat([torch.tensor(each.prompt, dtype=torch.int64) for each in answers]),
        answers=torch.cat([each.tokens for each in answers]),
        temperatures=torch.full((len(answers),), float(temperature)),
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
        temperatures=torch.zeros(len(texts)),
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
    dtypes |= {"top_log_probs": torch.float16, "temperatures": torch.float32}
    tensors = {
        name: tensor.to("cpu", dtypes.get(name, torch.int64)).contiguous()
        for name in Shard.__dataclass_fields__
        if (tensor := getattr(shard, name)) is not None
    }
    try:
        with replacing(path) as partial:
            # One entry: of several, safetensors writes the order that chance gives them.
            content = json.dumps({**(notes or {}), DIGEST_NOTE: _digest(tensors)})
            save_file(tensors, partial, metadata={NOTES_ENTRY: content})
    except (OSError, SafetensorError) as error:
        raise TrainingError.unwritten(path, error) from error


def read_shard(path: Path) -> Shard:
    """Opens a shard; its tensors are read when they are used.

    Raises:
        TrainingError: if the file is broken.
    """
    try:
        shard = Shard(**load_file(path))
        if fault := _fault_of(shard):
            raise ValueError(fault)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{path} is no shard of texts: {error}; put a whole copy back, or let the recipe that "
            "made it make it anew"
        ) from error
    return shard


def read_notes(path: Path) -> dict[str, str]:
    """Returns the text that a shard carries along.

    Raises:
        TrainingError: if the file is broken.
    """
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads((file.metadata() or {}).get(NOTES_ENTRY, "{}")))
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise TrainingError(f"{path} is broken: {error}") from error


def is_whole(path: Path) -> bool:
    """Tells whether a shard is there and as it was written; all of it is read."""
    try:
        return read_notes(path).get(DIGEST_NOTE) == _digest(load_file(path))
    except (OSError, SafetensorError, TrainingError):
        return False


def keep_whole(folder: Path, tell: Callable[[str], None]) -> list[Path]:
    """Returns the shards of a folder up to the first one that is lost or broken.

    The later ones are removed, for each goes on where the one before it ended.
    """
    files = shard_files(folder)
    kept: list[Path] = []
    for path in files:
        if path != shard_path(folder, len(kept)) or not is_whole(path):
            break
        kept.append(path)
    for path in files[len(kept) :]:
        tell(f"{path} is broken, or follows one that was lost; it is made anew")
        path.unlink()
    return kept


def shard_path(folder: Path, number: int) -> Path:
    """Returns where the shard of a number is."""
    return folder / f"{number:06}{SUFFIX}"


def shard_files(folder: Path) -> list[Path]:
    """Returns the shards of a folder in order."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fault_of(shard: Shard) -> str | None:
    """Returns what does not fit together in a shard, or None."""
    tensors = [getattr(shard, name) for name in Shard.__dataclass_fields__]
    one_axis, top = tensors[:6], [tensor for tensor in tensors[6:] if tensor is not None]
    num_answered = len(shard.answers) if shard.answers.ndim else 0
    faults = {
        "its tensors have other axes than they should": any(t.ndim != 1 for t in one_axis)
        or any(t.ndim != 2 or len(t) != num_answered for t in top)
        or len(top) not in (0, 2)
        or len({t.shape for t in top}) > 1,
        "its token ids or lengths are no integers": any(
            t.is_floating_point() or t.is_complex() or t.dtype == torch.bool for t in tensors[:5]
        ),
        "its temperatures are no numbers from 0 on": not shard.temperatures.is_floating_point()
        or not bool((shard.temperatures >= 0).all()),
    }
    fault = next((fault for fault, is_there in faults.items() if is_there), None)
    return fault or _fault_of_lengths(shard)


def _fault_of_lengths(shard: Shard) -> str | None:
    lengths = (shard.prompt_lengths, shard.answer_lengths)
    num_tokens = (len(shard.prompts), len(shard.answers))
    if len({len(each) for each in (*lengths, shard.prompt_index, shard.temperatures)}) > 1:
        return "it has more prompts than answers, or fewer"
    if any(len(each) and int(each.long().min()) < 0 for each in lengths):
        return "a text has a negative length"
    if tuple(int(each.sum()) for each in lengths) != num_tokens:
        return "its texts are longer or shorter than its tokens"
    return None
