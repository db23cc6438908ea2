"""What is kept between runs, and whether it may be used again.

Each kept folder has a record of what it was made from: digests of models, tokenizers and sources,
and settings. The record decides. What was made from the same is used again, and anything else is
refused with the old and the new value; nothing is told by its size alone. A record carries a digest
of its own, so one that was cut or edited counts as missing.

What is hashed when: a file is read whole the first time that its digest is asked for. The digest is
then remembered with the file's size and time of change, and as long as both stay, it is not read
again. What a run is about to load anyway, as a checkpoint, is read whole every time.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from treesnake.errors import InvalidInputError
from treesnake.files import PARTIAL_SUFFIX, write_text

Facts = Mapping[str, Any]
"""What something was made from, as plain data of JSON."""

BEGUN_FILE = "made_from.json"
DONE_SUFFIX = ".done.json"

SHA256, NAME = "sha256", "of"

MOST_SHOWN = 6
"""Differences that a refusal lists."""


def sha256_of_file(path: Path) -> str:
    """Returns the digest of a file, which is read whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(value: Any) -> str:
    """Returns the digest of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def content_fact(sha256: str, name: str) -> Facts:
    """Returns a fact that is known by its digest; the name is for messages and may change."""
    return {SHA256: sha256, NAME: name}


def differences(then: Facts, now: Facts) -> list[str]:
    """Returns what differs, each with its old and its new value."""
    old, new = dict(_flat(then)), dict(_flat(now))
    return [
        f"{key}: {_shown(old.get(key))} then, {_shown(new.get(key))} now"
        for key in dict.fromkeys((*old, *new))
        if _compared(old.get(key)) != _compared(new.get(key))
    ]


def check_same(then: Facts, now: Facts, what: Path, advice: str) -> None:
    """Checks that something was made from what is there now.

    Args:
        then: what it was made from.
        now: what it would be made from.
        what: is kept.
        advice: what to do if not.

    Raises:
        InvalidInputError: naming all that differs.
    """
    found = differences(then, now)
    if not found:
        return
    rest = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    raise InvalidInputError(
        f"{what} was made from something else ({'; '.join(found[:MOST_SHOWN])}{rest}); {advice}"
    )


class FileDigests:
    """Digests of files, each read again only if its size or its time of change is another.

    Args:
        path: where they are remembered; if that is lost or broken, files are read once more.

    Attributes:
        has_learned: whether a file was read that was not known.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, tuple[int, int, str]] = {}
        self.has_learned = False
        self.recall()

    def of(self, path: Path) -> str:
        """Returns the digest of a file."""
        key, status = str(path.absolute()), path.stat()
        size, changed, digest = self._known.get(key, (None, None, ""))
        if (size, changed) != (status.st_size, status.st_mtime_ns):
            digest = sha256_of_file(path)
            self._known[key] = (status.st_size, status.st_mtime_ns, digest)
            self.has_learned = True
        return digest

    def of_all(self, paths: Sequence[Path]) -> str:
        """Returns one digest of some files and their names, the folder aside."""
        return sha256_of([[path.name, self.of(path)] for path in paths])

    def recall(self) -> None:
        """Reads what is remembered."""
        record = WorkRecord.read(self._path)
        if record is not None:
            for key, (size, changed, digest) in record.made_from.items():
                self._known[key] = (size, changed, digest)

    def remember(self) -> None:
        """Writes what is known, if something is new."""
        if not self.has_learned:
            return
        WorkRecord(self._known, {}).write(self._path)
        self.has_learned = False


@dataclass(frozen=True)
class WorkRecord:
    """What something was made from, and what it consists of.

    Attributes:
        made_from: what decides whether it may be used again.
        files: the digest of each of its files, by the name in its folder.
    """

    made_from: Facts
    files: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Writes the record, whole or not at all."""
        content = {"made_from": self.made_from, "files": self.files}
        text = json.dumps(content | {SHA256: sha256_of(content)}, indent=1)
        write_text(path, text + "\n")

    @classmethod
    def read(cls, path: Path) -> "WorkRecord | None":
        """Returns what `write` wrote, or None if it is not there, or cut, or changed."""
        try:
            content = json.loads(path.read_bytes())
            if content.pop(SHA256) != sha256_of(content):
                return None
            return cls(dict(content["made_from"]), dict(content["files"]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None

    def damage(self, folder: Path, digest: Callable[[Path], str]) -> dict[str, str]:
        """Returns the files that are no more what they were, and how so.

        Args:
            folder: where they are.
            digest: gives the digest of a file.
        """
        found = {}
        for name, sha256 in self.files.items():
            try:
                if digest(folder / name) != sha256:
                    found[name] = f"{folder / name} has changed since it was written"
            except FileNotFoundError:
                found[name] = f"{folder / name} is lost"
            except OSError as error:
                found[name] = f"{folder / name} cannot be read: {error}"
        return found


class KeptFolder:
    """A folder that is filled file by file, over several runs.

    What it is made from is written into it before its first file; that it is done, and the digests
    of its files, are written beside it.

    Args:
        folder: whose name is the work's.
        digests: of files.
    """

    def __init__(self, folder: Path, digests: FileDigests) -> None:
        self.folder = folder
        self._digests = digests
        self._begun = folder / BEGUN_FILE
        self._done = folder.with_name(folder.name + DONE_SUFFIX)

    @property
    def made_from(self) -> Facts | None:
        """What it was made from, if that is known."""
        record = WorkRecord.read(self._begun) or WorkRecord.read(self._done)
        return None if record is None else record.made_from

    def open(self, made_from: Facts, tell: Callable[[str], None]) -> bool:
        """Tells whether the work is done; if not, it may go on.

        Files that were lost or have changed since it was done are told, and removed to be made
        anew.

        Raises:
            InvalidInputError: if what is there was made from something else, or nobody knows from
                what, or a file is there that does not belong to it.
        """
        if names := self._names():
            advice = f"delete {self.folder} to make it anew, or give the stage another name"
            then = self.made_from
            if then is None:
                raise InvalidInputError(
                    f"{self.folder} holds {min(names)}, and what that was made from is not "
                    f"known, for {BEGUN_FILE} is lost or of another version; put it back, or "
                    "move the folder away, and the stage begins anew"
                )
            check_same(then, made_from, self.folder, advice)
        begun = WorkRecord.read(self._begun)
        if begun is None or differences(begun.made_from, made_from):
            WorkRecord(made_from, {}).write(self._begun)
        return self._is_whole(made_from, tell)

    def finish(self, made_from: Facts) -> None:
        """Writes that all is done."""
        files = {name: self._digests.of(self.folder / name) for name in sorted(self._names())}
        WorkRecord(made_from, files).write(self._done)

    def fault(self) -> str | None:
        """Returns why the folder cannot be read as a whole, or None; folders of others can."""
        record = WorkRecord.read(self._done)
        if record is None:
            return "it is not finished" if self._begun.exists() or self._done.exists() else None
        found = [*record.damage(self.folder, self._digests.of).values()]
        found += [
            f"{name} does not belong to it" for name in sorted(self._names() - record.files.keys())
        ]
        return found[0] if found else None

    def _is_whole(self, made_from: Facts, tell: Callable[[str], None]) -> bool:
        record, names = WorkRecord.read(self._done), self._names()
        if record is None or differences(record.made_from, made_from) or not names:
            return False
        if strangers := sorted(names - record.files.keys()):
            raise InvalidInputError(
                f"{self.folder / strangers[0]} does not belong to what was made there; take it "
                "out, or name its own folder in the recipe"
            )
        damage = record.damage(self.folder, self._digests.of)
        for name, fault in damage.items():
            tell(f"{fault}; it is made anew")
            (self.folder / name).unlink(missing_ok=True)
        if damage:
            self._done.unlink()
        return not damage

    def _names(self) -> set[str]:
        if not self.folder.is_dir():
            return set()
        return {
            path.name
            for path in self.folder.iterdir()
            if path.name != BEGUN_FILE and not path.name.startswith(".")
            if not path.name.endswith(PARTIAL_SUFFIX) and path.is_file()
        }


@contextmanager
def alone(path: Path, busy: str) -> Iterator[None]:
    """Holds a lock file; the system frees it when its holder ends, however that comes.

    Raises:
        InvalidInputError: with the message `busy` if another process holds it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InvalidInputError(busy) from None
    except NotImplementedError:
        warnings.warn(
            f"the file system of {path} has no locks, so nothing keeps a second process out",
            RuntimeWarning,
            stacklevel=3,
        )
    try:
        yield
    finally:
        lock.release()


def _flat(facts: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yields all values with their places; a fact that is known by its digest is one value."""
    if isinstance(facts, Mapping) and not _is_content(facts):
        for key, value in facts.items():
            yield from _flat(value, f"{where}.{key}" if where else str(key))
    elif _is_list_of_facts(facts):
        for number, value in enumerate(facts, 1):
            yield from _flat(value, f"{where}[{number}]")
    else:
        yield where, facts


def _compared(value: Any) -> str:
    return json.dumps(value[SHA256] if _is_content(value) else value)


def _shown(value: Any) -> str:
    if _is_content(value):
        return f"{value.get(NAME)} (sha256 {str(value[SHA256])[:12]})"
    return "nothing" if value is None else json.dumps(value)


def _is_content(value: Any) -> bool:
    return isinstance(value, Mapping) and SHA256 in value


def _is_list_of_facts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(each, Mapping) for each in value)
