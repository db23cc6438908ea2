"""Files that a person asked for: refused before the work if they cannot be, told if they fail."""

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from treesnake.errors import InvalidInputError, OutputError
from treesnake.files import write_text
from treesnake.kept_work import alone


def check_output(path: Path) -> None:
    """Makes the folder of a file that is to be written, and checks that it can be.

    Raises:
        InvalidInputError: if the file is a folder, if one of its folders is a file or cannot be
            made, or if nothing may be written there.
    """
    try:
        with suppress(FileNotFoundError):
            path.stat()  # a link that leads to itself is neither there nor missing
        if path.is_dir():
            raise InvalidInputError(f"the output {path} is a folder; name a file in it")
        if _is_stream(path):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "it may not be written")
        _try_to_write(path)
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            f"the output {path} cannot be written: {_reason(error)}; choose another one"
        ) from error


def make_private_folder(folder: Path, kept: str) -> None:
    """Makes a folder that a person named, and those on the way, for their owner alone.

    Args:
        folder: it may be there already.
        kept: what is kept there, as an error says it.

    Raises:
        InvalidInputError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidInputError(
            f"{kept} cannot be kept in {folder}: {error.strerror or error}; name a folder that can "
            "be written"
        ) from error


def write_output(path: Path, text: str, hint: str = "make room or choose another one") -> None:
    """Writes a file whole or not at all; a device or a pipe gets the text as it comes.

    Args:
        path: of the file.
        text: what to write.
        hint: what to do if that fails.

    Raises:
        OutputError: if it fails.
    """
    with telling_failure(path, hint):
        if _is_stream(path):
            path.write_text(text, "utf-8", errors="replace")
        else:
            write_text(path, text.encode(errors="replace").decode())


@contextmanager
def telling_failure(path: Path, hint: str) -> Iterator[None]:
    """Tells in our words that a file cannot be written.

    Args:
        path: of the file.
        hint: what to do.

    Raises:
        OutputError: if the block raises an error of the system.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {_reason(error)}; {hint}") from error


def held_alone(path: Path) -> AbstractContextManager[None]:
    """Keeps other processes from writing a file; the system lets go of it when its holder dies.

    Raises:
        InvalidInputError: if another process holds it.
    """
    whole = path.resolve()
    return alone(
        whole.with_name(f".{whole.name}.lock"),
        f"another process is writing {path}; wait for its end, or choose another output",
    )


def _is_stream(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _try_to_write(path: Path) -> None:
    """Makes a file beside the output, under a name no shorter than any that is to come."""
    trial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        trial.touch(exist_ok=False)
    finally:
        with suppress(OSError):
            trial.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def remove_files(files: Iterable[Path]) -> None:
    """Removes files; those that are gone already are no error.

    Raises:
        OutputError: if one cannot be removed.
    """
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"{file} cannot be removed: {error.strerror}; those before it are gone"
            ) from error
