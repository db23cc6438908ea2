"""What one process wrote the next one reads, whatever happened to either."""

import logging
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from treesnake.errors import InvalidInputError
from treesnake.memory.memory_log import KeptMemories, MemoryLog
from treesnake.memory.text_memory import LEAST_BYTES, TextMemory

MADE_FROM = {"target": "tiny", "tokenizer": "bytes"}
MOST = 10_000


def texts_in(folder: Path) -> list[list[int]]:
    return [text.tolist() for text in MemoryLog(folder, MADE_FROM).read(MOST)]


def test_the_next_process_finds_what_was_said(tmp_path: Path) -> None:
    first = TextMemory(LEAST_BYTES, MemoryLog(tmp_path / "new" / "folder", MADE_FROM))
    first.add([1, 2, 3, 4, 5])
    second = TextMemory(LEAST_BYTES, MemoryLog(tmp_path / "new" / "folder", MADE_FROM))
    assert second.recall([1, 2, 3], 2).continuations == [[4, 5]]


def test_pieces_of_one_text_are_one_again(tmp_path: Path) -> None:
    memory = TextMemory(LEAST_BYTES, MemoryLog(tmp_path, MADE_FROM))
    end = memory.add([1, 2, 3, 4])
    memory.add([3, 4, 5], num_known=2, after=end)
    memory.add([7, 8])
    memory.add([4, 5, 6], num_known=2, after=end)
    assert texts_in(tmp_path) == [[1, 2, 3, 4, 5], [7, 8], [4, 5, 6]]


def test_other_targets_and_users_have_files_of_their_own(tmp_path: Path) -> None:
    memory = TextMemory(LEAST_BYTES, MemoryLog(tmp_path, MADE_FROM))
    memory.of("secret").add([1, 2, 3, 4])
    other = MemoryLog(tmp_path, {**MADE_FROM, "target": "another"})
    assert (texts_in(tmp_path), other.read(MOST)) == ([], [])
    assert TextMemory(LEAST_BYTES, MemoryLog(tmp_path, MADE_FROM)).of("secret").recall(
        [1, 2, 3], 1
    ).continuations == [[4]]
    assert not any("secret" in path.name for path in tmp_path.iterdir())
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.glob("*.tokens"))


@pytest.mark.parametrize("num_lost", [1, 5, 20])
def test_a_piece_that_was_cut_is_passed_over(tmp_path: Path, num_lost: int) -> None:
    log = MemoryLog(tmp_path, MADE_FROM)
    for text in ([1, 2, 3], [4, 5, 6]):
        log.append(text, 0)
    log.path.write_bytes(log.path.read_bytes()[:-num_lost])
    log.append([7, 8, 9], 0)
    assert texts_in(tmp_path) == [[1, 2, 3], [7, 8, 9]]


def test_a_byte_that_changed_costs_one_piece(tmp_path: Path) -> None:
    log = MemoryLog(tmp_path, MADE_FROM)
    for text in ([1, 2, 3], [4, 5, 6], [7, 8, 9]):
        log.append(text, 0)
    content = bytearray(log.path.read_bytes())
    content[len(content) // 2] ^= 255
    log.path.write_bytes(content)
    assert texts_in(tmp_path) == [[1, 2, 3], [7, 8, 9]]


def test_a_file_that_grew_too_long_loses_its_older_half(tmp_path: Path) -> None:
    log = MemoryLog(tmp_path, MADE_FROM)
    log.read(100)
    for number in range(100):
        log.append([number] * 10, 0)
    texts = texts_in(tmp_path)
    assert 10 <= len(texts) <= 20
    assert texts[-1] == [99] * 10
    assert len(MemoryLog(tmp_path, MADE_FROM).read(100)) == 10


def _write(folder: Path, number: int, num_texts: int) -> None:
    log = MemoryLog(folder, MADE_FROM)
    for _ in range(num_texts):
        log.append([number] * 50, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that begin at once")
def test_two_processes_write_one_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, n, 40)) for n in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    texts = texts_in(tmp_path)
    assert [texts.count([number] * 50) for number in (1, 2)] == [40, 40]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that begin at once")
def test_what_a_killed_process_leaves_is_whole_pieces(tmp_path: Path) -> None:
    log = MemoryLog(tmp_path, MADE_FROM)
    writer = multiprocessing.get_context("fork").Process(
        target=_write, args=(tmp_path, 1, 1_000_000)
    )
    writer.start()
    while not texts_in(tmp_path):
        assert writer.is_alive()
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    log.append([2] * 50, 0)
    texts = texts_in(tmp_path)
    assert texts[-1] == [2] * 50
    assert all(text == [1] * 50 for text in texts[:-1])


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InvalidInputError, match=r"cannot be kept in .*file"):
        MemoryLog(tmp_path / "file", MADE_FROM)


def test_a_file_that_cannot_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = MemoryLog(tmp_path, MADE_FROM)
    memory = TextMemory(LEAST_BYTES, log)
    log.path.mkdir()
    with caplog.at_level(logging.WARNING):
        memory.add([1, 2, 3, 4])
        memory.add([1, 2, 3, 5])
    assert len(caplog.records) == 1
    assert len(memory.recall([1, 2, 3], 1).agreements) == 2


def test_clearing_removes_memories_and_nothing_else(tmp_path: Path) -> None:
    log = MemoryLog(tmp_path, MADE_FROM)
    log.append([1, 2, 3], 0)
    (tmp_path / "letter.txt").write_text("mine")
    kept = KeptMemories(tmp_path)
    assert kept.description.startswith("1 memories, ")
    (tmp_path / "0123.learned").touch()
    assert kept.description.startswith("1 memories and 1 learned drafters, ")
    kept.clear()
    assert not (tmp_path / "0123.learned").exists()
    assert texts_in(tmp_path) == []
    assert (tmp_path / "letter.txt").exists()
    log.append([4, 5, 6], 0)
    assert texts_in(tmp_path) == [[4, 5, 6]]
