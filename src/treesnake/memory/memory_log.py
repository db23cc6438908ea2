"""A memory's file: pieces of text one behind the other, as their tokens.

Any number of processes add to one file. Each piece is written at once, under a lock that the system
frees when its holder ends, and carries a checksum. What a process left half-written when it was
killed is passed over by those who read. A file that has become twice as long as a memory can hold
loses its older half.
"""

import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from treesnake.errors import InvalidInputError
from treesnake.files import replacing
from treesnake.kept_work import sha256_of
from treesnake.outputs import make_private_folder, remove_files

SUFFIX = ".tokens"

LEARNED_SUFFIX = ".learned"
"""That of what drafters learned from texts: files beside a memory's, which are cleared with it."""
MARK = b"\xf5tsm"
"""The first bytes of a piece; the first of them is none of UTF-8."""

HEADER = Struct("<4sIII")
"""The mark, the tokens, how many of them are context, and the checksum of all that follows."""

LOCK_S = 5.0
"""How long to wait for another process that writes."""

logger = logging.getLogger(__name__)

Tokens = NDArray[np.uint32]


@dataclass(frozen=True)
class Piece:
    """Tokens of a text.

    Attributes:
        token_ids: with their context.
        num_known: how many of them are context.
    """

    token_ids: Tokens
    num_known: int

    def as_bytes(self) -> bytes:
        """Returns it as it is written."""
        content = self.token_ids.astype("<u4").tobytes()
        size = len(self.token_ids)
        return HEADER.pack(MARK, size, self.num_known, zlib.crc32(content)) + content


class MemoryLog:
    """The file of one memory.

    Args:
        folder: where it is; folders on the way are made, for their owner alone.
        made_from: what decides whether texts may be used: the target, its tokenizer, the user.

    Raises:
        InvalidInputError: if the folder cannot be made.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, str]) -> None:
        self._folder = folder
        self._made_from = dict(made_from)
        self._most_bytes: int | None = None
        self._is_broken = False
        self.path = folder / f"{sha256_of(self._made_from)[:16]}{SUFFIX}"
        make_private_folder(folder, "the memory")

    def of(self, user: str) -> "MemoryLog":
        """Returns the file of another user in the same folder; the name is not kept in it."""
        return MemoryLog(self._folder, {**self._made_from, "user": sha256_of(user)})

    def read(self, most_tokens: int) -> list[Tokens]:
        """Returns the texts, pieces joined where one goes on from the one before it.

        Args:
            most_tokens: that a memory can hold; older ones are left out, and removed at times.

        Raises:
            InvalidInputError: if the file cannot be read.
        """
        self._most_bytes = 4 * most_tokens
        try:
            pieces = list(self._pieces())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InvalidInputError(
                f"the memory {self.path} cannot be read: {error.strerror or error}; remove it, or "
                "name another folder"
            ) from error
        return _joined(_latest(pieces, self._most_bytes))

    def append(self, token_ids: Sequence[int], num_known: int) -> None:
        """Adds a piece. What cannot be written is told in the log, once, and is no error."""
        if self._is_broken:
            return
        piece = Piece(np.array(token_ids, np.uint32), num_known)
        try:
            with self._alone():
                descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                with os.fdopen(descriptor, "ab", buffering=0) as file:
                    file.write(piece.as_bytes())
                    num_bytes = file.tell()
                if self._most_bytes is not None and num_bytes > 2 * self._most_bytes:
                    self._shorten(self._most_bytes)
        except (OSError, Timeout) as error:
            self._is_broken = True
            logger.warning(
                "the memory in %s is not written any more: %s; texts are remembered until the "
                "process ends",
                self.path,
                error,
            )

    def _shorten(self, most_bytes: int) -> None:
        kept = _latest(list(self._pieces()), most_bytes)
        with replacing(self.path) as partial:
            partial.write_bytes(b"".join(piece.as_bytes() for piece in kept))
            partial.chmod(0o600)

    def _pieces(self) -> Iterator[Piece]:
        """Yields what is whole."""
        content = self.path.read_bytes()
        begin = content.find(MARK)
        while begin >= 0:
            piece = _piece_at(content, begin)
            step = len(MARK) if piece is None else HEADER.size + piece.token_ids.nbytes
            if piece is not None:
                yield piece
            begin = content.find(MARK, begin + step)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the lock of the file; a file system without locks has one writer, it is hoped."""
        lock = FileLock(f"{self.path}.lock", timeout=LOCK_S)
        with suppress(NotImplementedError):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _piece_at(content: bytes, begin: int) -> Piece | None:
    """Returns the piece that begins here, if it is whole."""
    header = content[begin : begin + HEADER.size]
    if len(header) < HEADER.size:
        return None
    _, size, num_known, checksum = HEADER.unpack(header)
    text = content[begin + HEADER.size : begin + HEADER.size + 4 * size]
    if len(text) < 4 * size or zlib.crc32(text) != checksum or num_known > size:
        return None
    return Piece(np.frombuffer(text, "<u4").astype(np.uint32), num_known)


def _latest(pieces: Sequence[Piece], most_bytes: int) -> Sequence[Piece]:
    """Returns as many of the last pieces as there is room for."""
    first, num_bytes = len(pieces), 0
    while first and (num_bytes := num_bytes + pieces[first - 1].token_ids.nbytes) <= most_bytes:
        first -= 1
    return pieces[first:]


def _joined(pieces: Sequence[Piece]) -> list[Tokens]:
    """Returns texts; a piece whose context is the end of the one before it goes on from there."""
    texts: list[list[Tokens]] = []
    before: Tokens | None = None
    for piece in pieces:
        tokens, num_known = piece.token_ids, piece.num_known
        context = tokens[:num_known]
        if num_known and before is not None and np.array_equal(before[-num_known:], context):
            texts[-1].append(tokens[num_known:])
        else:
            texts.append([tokens])
        before = tokens
    return [np.concatenate(parts) for parts in texts]


@dataclass(frozen=True)
class KeptMemories:
    """The files of all memories in a folder, and of what was learned."""

    folder: Path

    @property
    def description(self) -> str:
        """How many there are, how large they are together, and where."""
        files = self._files()
        num_bytes = sum(file.stat().st_size for file in files)
        num_learned = sum(file.suffix == LEARNED_SUFFIX for file in files)
        learned = f" and {num_learned} learned drafters" if num_learned else ""
        memories = f"{len(files) - num_learned} memories{learned}"
        return f"{memories}, {num_bytes / 1e6:.1f} MB in {self.folder}"

    def clear(self) -> None:
        """Removes them; a process that remembers goes on with an empty file.

        Raises:
            OutputError: if one cannot be removed.
        """
        remove_files(self._files())

    def _files(self) -> list[Path]:
        suffixes = SUFFIX, LEARNED_SUFFIX
        return sorted(file for suffix in suffixes for file in self.folder.glob(f"*{suffix}"))
