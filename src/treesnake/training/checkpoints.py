"""Folders that are whole or not there, and checkpoints made of them.

A folder is filled under another name, its files are brought to the disk, a record of their digests
and of what they were made from is added, and the folder is renamed. Whenever a run is killed, its
last checkpoint is whole.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError

from treesnake.errors import TrainingError
from treesnake.files import bring_to_disk
from treesnake.kept_work import Facts, WorkRecord, sha256_of_file

RECORD_FILE = "record.json"
PARTIAL = ".partial"
REPLACED = ".replaced"

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""How the standard library, torch and safetensors report that a file cannot be written."""

NUM_KEPT = 2
"""Checkpoints that are kept: the newest, and one more in case it is found broken."""


def write_folder(folder: Path, fill: Callable[[Path], None], made_from: Facts) -> None:
    """Fills a folder and gives it its name; one that is there already is replaced.

    Raises:
        TrainingError: if it cannot be written, as on a full disk. What was there stays.
    """
    partial = begin_folder(folder)
    try:
        fill(partial)
        finish_folder(folder, made_from)
    except WRITE_ERRORS as error:
        abandon_folder(folder, error)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


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


def finish_folder(folder: Path, made_from: Facts) -> None:
    """Adds the record to what was filled, and gives it its name."""
    partial, replaced = partial_folder(folder), _beside(folder, REPLACED)
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    digests = {path.relative_to(partial).as_posix(): sha256_of_file(path) for path in files}
    for path in (*files, partial):
        bring_to_disk(path)
    WorkRecord(made_from, digests).write(partial / RECORD_FILE)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    bring_to_disk(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def abandon_folder(folder: Path, error: Exception) -> NoReturn:
    """Removes what was filled and says so."""
    shutil.rmtree(partial_folder(folder), ignore_errors=True)
    raise TrainingError.unwritten(folder, error) from error


def find_folder(folder: Path) -> Path | None:
    """Returns a folder that was finished, also if the run ended while it was being replaced."""
    replaced = _beside(folder, REPLACED)
    if not folder.exists() and replaced.exists():
        replaced.rename(folder)
    return folder if folder.exists() else None


def remove_folder(folder: Path) -> None:
    """Removes a finished folder, and what it was to be replaced by."""
    for path in (folder, partial_folder(folder), _beside(folder, REPLACED)):
        shutil.rmtree(path, ignore_errors=True)


def read_record(folder: Path) -> WorkRecord | None:
    """Returns what a finished folder was made from and consists of."""
    return WorkRecord.read(folder / RECORD_FILE)


def find_damage(folder: Path) -> str | None:
    """Returns what is broken in a finished folder, or None; every file is read."""
    record = read_record(folder)
    if record is None:
        return f"{folder / RECORD_FILE} is lost, broken or of another version"
    return next(iter(record.damage(folder, sha256_of_file).values()), None)


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
