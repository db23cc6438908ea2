"""A pointer of Git LFS is told from a broken file, whatever should be in its place."""

from collections.abc import Callable
from pathlib import Path

import pytest

from treesnake.errors import LoadError
from treesnake.models.checkpoint import PICKLE_FILE, open_tensors
from treesnake.models.gguf import GgufFile
from treesnake.models.json_files import read_json
from treesnake.models.weights import SINGLE_FILE, open_weights

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 7\n"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (SINGLE_FILE, lambda path: open_weights(path.parent)),
        (PICKLE_FILE, lambda path: open_tensors(path.parent)),
        ("model.gguf", GgufFile),
        ("tokenizer.json", read_json),
    ],
)
def test_a_pointer_is_told(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(LoadError, match=rf"{name} is a Git LFS pointer .* `git lfs pull`"):
        read(tmp_path / name)
