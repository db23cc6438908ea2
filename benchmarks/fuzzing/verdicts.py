"""Judges what came of an input: right, told with a hint, or a find."""

from dataclasses import dataclass
from pathlib import Path

from fuzzing.cases import Case
from fuzzing.process import Limits, Outcome, run_apart

RIGHT, TOLD, ACCEPTED_ALONE = "right", "told", "accepted alone"
CRASH, HANG, MEMORY = "crash", "hang", "memory"
BARE_ERROR, NO_HINT, OTHER_TEXT = "bare error", "no hint", "other text"
OWN_FAULT = "fault of the fuzzer"
FINDS = (CRASH, HANG, MEMORY, BARE_ERROR, NO_HINT, OTHER_TEXT, OWN_FAULT)

ALLOWED_BYTES = 96 << 20
ALLOWED_PER_BYTE = 8
"""Memory beyond that of the specimen: so much, and so many times the input's files."""

WITHOUT_FILE = ("BrokenModelError", "ContextLengthError")
"""Errors that come when the files are long read, and name a layer or a length instead."""

OUT_OF_MEMORY = ("MemoryError", "allocate memory", "Unable to allocate", "Cannot allocate")


@dataclass(frozen=True)
class Verdict:
    """What an input showed.

    Attributes:
        kind: one of the words above.
        error: the name of the exception or signal, if there is one.
        frame: the innermost function of treesnake, if it is known.
        detail: the message, or how two texts differ.
        growth_bytes: the peak of memory.
        seconds: of opening it.
    """

    kind: str
    error: str = ""
    frame: str = ""
    detail: str = ""
    growth_bytes: int = 0
    seconds: float = 0.0


def judge(case: Case, limits: Limits, usual_bytes: int | None) -> Verdict:
    """Opens a case, and reads it with the reference where it could be opened.

    Args:
        case: the input.
        limits: of each process.
        usual_bytes: what opening the specimen itself takes; None if that is being measured.
    """
    size = sum(path.stat().st_size for path in case.files.rglob("*") if path.is_file())
    names = _names(case.files)
    opened = run_apart(case.open, limits, case.files.parent)
    if opened.kind in (CRASH, HANG):
        return _verdict(opened.kind, opened, opened.message)
    if opened.kind == "error":
        return _judge_error(opened, names)
    allowed = ALLOWED_BYTES + ALLOWED_PER_BYTE * size
    if usual_bytes is not None and opened.growth_bytes > usual_bytes + allowed:
        return _verdict(MEMORY, opened, f"{opened.growth_bytes >> 20} MB for {size} bytes of files")
    meant = run_apart(case.meant, limits, case.files.parent)
    if meant.kind != "value":
        why = f"the reference says {meant.error}: {meant.message[:300]}"
        return _verdict(ACCEPTED_ALONE, opened, why)
    try:
        found = case.compare(opened.value, meant.value)
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        found = f"of another kind than what was meant ({error})"
    return _verdict(RIGHT, opened) if found is None else _verdict(OTHER_TEXT, opened, found)


def _judge_error(opened: Outcome, names: frozenset[str]) -> Verdict:
    message = opened.message
    if any(sign in f"{opened.error}: {message}" for sign in OUT_OF_MEMORY):
        return _verdict(MEMORY, opened, message)
    if not opened.is_ours:
        return _verdict(BARE_ERROR, opened, message)
    is_pointed = opened.error in WITHOUT_FILE or any(name in message for name in names)
    if not message.strip() or not is_pointed:
        return _verdict(NO_HINT, opened, message)
    return _verdict(TOLD, opened, message)


def _names(folder: Path) -> frozenset[str]:
    """Returns the names by which a message can point to an input."""
    return frozenset({folder.name, *(path.name for path in folder.rglob("*"))})


def _verdict(kind: str, opened: Outcome, detail: str = "") -> Verdict:
    return Verdict(
        kind, opened.error, opened.frame, detail[:600], opened.growth_bytes, opened.seconds
    )
