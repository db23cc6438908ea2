"""What a drafter learned is kept whole, for one drafter and one target."""

from pathlib import Path

import pytest
import torch

from treesnake.drafters.kept_output import KeptOutput
from treesnake.errors import InvalidInputError

MADE_FROM = {"target": "tiny"}
FIRST = torch.randn(5, 4)
LEARNED = FIRST + 1


def kept_in(folder: Path) -> KeptOutput:
    kept = KeptOutput(folder / "new", MADE_FROM)
    assert kept.read(FIRST) is None
    kept.write(LEARNED)
    return kept


def test_what_was_learned_is_read_by_the_next_process(tmp_path: Path) -> None:
    kept_in(tmp_path)
    read = KeptOutput(tmp_path / "new", MADE_FROM).read(FIRST)
    assert read is not None
    assert torch.allclose(read, LEARNED, atol=1e-2)


def test_another_target_and_another_drafter_begin_anew(tmp_path: Path) -> None:
    kept_in(tmp_path)
    assert KeptOutput(tmp_path / "new", {"target": "other"}).read(FIRST) is None
    assert KeptOutput(tmp_path / "new", MADE_FROM).read(FIRST * 2) is None
    assert KeptOutput(tmp_path / "new", MADE_FROM).read(torch.randn(6, 4)) is None


def test_a_cut_file_is_told_and_learning_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = kept_in(tmp_path)
    content = kept.path.read_bytes()
    for size in (0, 4, len(content) // 2, len(content) - 1):
        kept.path.write_bytes(content[:size])
        assert kept.read(FIRST) is None
    assert "learning begins anew" in caplog.text


def test_a_layer_with_a_number_that_is_none_is_not_used(tmp_path: Path) -> None:
    kept = kept_in(tmp_path)
    kept.write(torch.full((5, 4), float("nan")))
    assert kept.read(FIRST) is None


def test_what_cannot_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = kept_in(tmp_path)
    kept.path.unlink()
    kept.path.mkdir()  # root may write whatever its mode
    (kept.path / "file").touch()
    for _ in range(2):
        kept.write(LEARNED)
    assert caplog.text.count("is not written any more") == 1


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match="name a folder that can be written"):
        KeptOutput(tmp_path / "file" / "folder", MADE_FROM)


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    assert kept_in(tmp_path).path.stat().st_mode & 0o777 == 0o600
