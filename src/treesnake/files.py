"""Files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL_SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write to; when the block ends, the file there takes the name `path`.

    Readers see the old file or the new one, never a part, and so it is after a power cut. If the
    block fails, the old file stays and the new one is removed. Folders on the way are made.

    Args:
        path: what the file is called in the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        yield partial
        bring_to_disk(partial)
        partial.replace(path)
        bring_to_disk(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def bring_to_disk(path: Path) -> None:
    """Returns when a file, or the list of a folder's files, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and has their entries on the disk by itself
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, "utf-8")
