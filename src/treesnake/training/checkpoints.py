"""Folders that are whole or not there, and checkpoints made of them.

A folder is filled under another name, its files are brought to the disk, a list of their checksums
is added, and the folder is renamed. Whenever a run is killed, its last checkpoint is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError

from treesnake.errors import TrainingError

CHECKSUMS = "checksums.json"
PARTIAL = ".partial"
REPLACED = ".replaced"

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""How the standard library, torch and safetensors report that a file cannot be written."""

NUM_KEPT = 2
"""Checkpoints that are kept: the newest, and one more in case it is found broken."""


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fills a folder and gives it its name; one that is there already is replaced.

    Raises:
        TrainingError: if it cannot be written, as on a full disk. What was there stays.
    """
    partial = begin_folder(folder)
    try:
        fill(partial)
        finish_folder(folder)
    except WRITE_ERRORS as error:
        abandon_folder(folder, error)


def partial_folder(folder: Path) -> Path:
    """Returns where a folder is filled before it gets its name."""
    return _beside(folder, PARTIAL)


def begin_folder(folder: Path) -> Path:
    """Returns an empty folder to be filled for `finish_folder`."""
    partial = partial_folder(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        abandon_folder(folder, error)
    return partial


def finish_folder(folder: Path) -> None:
    """Adds checksums to what was filled, and gives it its name."""
    partial, replaced = partial_folder(folder), _beside(folder, REPLACED)
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    checksums = {str(path.relative_to(partial)): _checksum(path) for path in files}
    (partial / CHECKSUMS).write_text(json.dumps(checksums, indent=1), "utf-8")
    for path in (*files, partial / CHECKSUMS, partial):
        _bring_to_disk(path)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    _bring_to_disk(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def abandon_folder(folder: Path, error: Exception) -> NoReturn:
    """Removes what was filled and says so."""
    shutil.rmtree(partial_folder(folder), ignore_errors=True)
    raise TrainingError(
        f"{folder} cannot be written: {error}; what was written before is whole, so make room and "
        "run the same command again"
    ) from error


def find_folder(folder: Path) -> Path | None:
    """Returns a folder that was finished, also if the run ended while it was being replaced."""
    replaced = _beside(folder, REPLACED)
    if not folder.exists() and replaced.exists():
        replaced.rename(folder)
    return folder if folder.exists() else None


def find_damage(folder: Path) -> str | None:
    """Returns what is broken in a finished folder, or None."""
    try:
        checksums = json.loads((folder / CHECKSUMS).read_text("utf-8"))
        broken = [name for name, sum_ in checksums.items() if _checksum(folder / name) != sum_]
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return f"{broken[0]} has changed since it was written" if broken else None


def checkpoint_folder(folder: Path, update: int) -> Path:
    """Returns where the checkpoint after so many updates is."""
    return folder / f"update-{update:08}"


def remove_old_checkpoints(folder: Path) -> None:
    """Removes all checkpoints but the newest ones, and what was left half-written."""
    unfinished = [path for path in folder.iterdir() if path.suffix in (PARTIAL, REPLACED)]
    for path in (*unfinished, *_checkpoints(folder)[NUM_KEPT:]):
        shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """Returns the newest checkpoint that is not broken, or None if there is none at all.

    Args:
        folder: where the checkpoints are.
        tell: is told of broken ones.

    Raises:
        TrainingError: if all are broken.
    """
    faults = []
    for path in _checkpoints(folder):
        found = find_damage(path)
        if found is None:
            return path
        faults.append(f"the checkpoint {path} is broken: {found}")
        tell(faults[-1])
    if faults:
        raise TrainingError(f"{faults[0]}; no other is left: delete {folder} to start anew")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Returns the finished checkpoints, newest first."""
    return sorted((path for path in folder.glob("update-*") if not path.suffix), reverse=True)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bring_to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and has their entries on the disk by itself
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
