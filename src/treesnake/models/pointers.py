"""Git LFS pointers: texts of three lines that stand where a large file should be."""

from pathlib import Path

from treesnake.errors import LoadError

BEGINNING = b"version https://git-lfs"


def check_no_pointer(path: Path) -> None:
    """Checks that a file is not the pointer that git leaves where git-lfs has not fetched it.

    Raises:
        LoadError: if it is one.
    """
    with path.open("rb") as stream:
        check_content(stream.read(len(BEGINNING)), path)


def check_content(content: bytes, path: Path) -> None:
    """Checks what a file begins with, as `check_no_pointer` does."""
    if content.startswith(BEGINNING):
        raise LoadError(
            f"{path} is a Git LFS pointer and not the file itself; fetch that with `git lfs pull`, "
            "or from the hub"
        )
