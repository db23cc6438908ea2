"""The memory of a target: in the process, or in a folder by what the texts were made with."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from treesnake.errors import InvalidInputError, LoadError
from treesnake.kept_work import sha256_of
from treesnake.loading.checkpoint import Checkpoint
from treesnake.memory.memory_log import MemoryLog
from treesnake.memory.text_memory import DEFAULT_BYTES, TextMemory

MemoryLike = bool | str | Path | TextMemory
"""Whether there is one, or the folder where it is kept, or one that is there."""


def open_memory(chosen: MemoryLike, checkpoint: Checkpoint) -> TextMemory | None:
    """Returns the memory of a target, with what its folder holds of earlier processes.

    Args:
        chosen: as in `SpeculativeDecoder.from_pretrained`.
        checkpoint: the target.

    Raises:
        InvalidInputError: if the folder cannot be read or written.
    """
    if isinstance(chosen, bool):
        return TextMemory() if chosen else None
    if isinstance(chosen, TextMemory):
        return chosen
    if not isinstance(chosen, str | Path) or not str(chosen):
        raise InvalidInputError(
            f"memory must be True, False, a folder or a TextMemory, got {chosen!r}"
        )
    log = MemoryLog(Path(chosen).expanduser(), made_from(checkpoint))
    return TextMemory(DEFAULT_BYTES, log)


def made_from(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns what a text depends on: tokens mean nothing to another tokenizer."""
    return {
        "target": checkpoint.name,
        "config": sha256_of(checkpoint.config.to_json_string()),
        "tokenizer": _digest_of_tokenizer(checkpoint),
    }


def _digest_of_tokenizer(checkpoint: Checkpoint) -> str:
    try:
        tokenizer = checkpoint.tokenizer
    except LoadError:
        return "none"
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return sha256_of(tokenizer.backend_tokenizer.to_str())
    return sha256_of(tokenizer.get_vocab())
