"""The gate for images from outside: files, addresses, data URLs, and images of Pillow."""

import base64
import binascii
import io
from collections.abc import Mapping
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes
from urllib.request import Request, urlopen

from treesnake.errors import InvalidInputError, LoadError, reason_of
from treesnake.utf8 import check_path, described

if TYPE_CHECKING:
    from PIL.Image import Image

SOURCES = ("image", "path", "url", "base64")
"""The keys of a part of a message that say where its image is, as in transformers."""

ADDRESS_PART = "image_url"
"""What OpenAI calls a part with an image, and its key: an object with the `url`."""

MOST_BYTES = 64 * 2**20
"""What an image takes as a file at most."""

SMALL_SIDE = 240
"""The longer side of a small copy, in pixels, at most."""

PATIENCE_S = 30.0
"""How long an address may take to answer."""

WEB = ("http://", "https://")
DATA = "data:"


def is_image_part(part: object) -> bool:
    """Tells whether a part of a message is an image."""
    return isinstance(part, Mapping) and part.get("type") in ("image", ADDRESS_PART)


def check_image_part(part: Mapping[str, Any], where: str) -> object:
    """Returns where the image of a part is, which is not looked at yet.

    Raises:
        InvalidInputError: unless the part says so exactly once.
    """
    address = part.get(ADDRESS_PART)
    if isinstance(address, Mapping):
        address = address.get("url")
    found = [part[key] for key in SOURCES if part.get(key) is not None]
    found += [] if address is None else [address]
    if len(found) != 1:
        number = "no image" if not found else f"{len(found)} images"
        raise InvalidInputError(
            f"{where} has {number}: write {{'type': 'image', 'path': 'cat.png'}}, or the same with "
            "a url, base64, or as image what PIL.Image.open returns"
        )
    if part.get("base64") is not None:
        return f"{DATA}image;base64,{part['base64']}"
    if part.get("path") is not None:
        return _as_path(part["path"], where)
    return found[0]


def check_pillow() -> None:
    """Checks that images can be read at all.

    Raises:
        LoadError: if the package that reads them is missing.
    """
    if find_spec("PIL") is None:
        raise LoadError("images need the package Pillow; install treesnake[vision]")


def read_image(source: object, where: str) -> "Image":
    """Returns an image in red, green and blue, the right way up.

    Args:
        source: a path, an address that begins with http, a data URL, or an image of Pillow.
        where: what it is called in messages.

    Raises:
        InvalidInputError: if there is no image, or it cannot be read.
        LoadError: if Pillow is missing.
    """
    check_pillow()
    from PIL import Image, ImageOps  # noqa: PLC0415 - an optional dependency

    is_open = isinstance(source, Image.Image)
    content, name = (b"", "an image of Pillow") if is_open else _content(source, where)
    try:
        image = source if is_open else Image.open(io.BytesIO(content))
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # each reader of Pillow raises what it likes
        reason = "it is empty" if not (content or is_open) else reason_of(error)
        if isinstance(error, Image.UnidentifiedImageError) and content:
            reason = "it is no image of a kind that Pillow reads, or it is broken"
        raise InvalidInputError(f"{where}, {name}, cannot be read: {reason}") from error


def small_copy(picture: "Image") -> str:
    """Returns a small copy of an image as a data URL, for pages that load nothing."""
    copy, file = picture.copy(), io.BytesIO()
    copy.thumbnail((SMALL_SIDE, SMALL_SIDE))
    copy.save(file, "PNG")
    return png_address(file.getvalue())


def png_address(content: bytes) -> str:
    """Returns the data URL of a PNG file."""
    return f"{DATA}image/png;base64,{base64.b64encode(content).decode()}"


def _content(source: object, where: str) -> tuple[bytes, str]:
    """Returns the bytes of an image, and what messages call it."""
    if isinstance(source, str) and source.startswith(DATA):
        return _from_data(source, where), "a data URL"
    if isinstance(source, str) and source.startswith(WEB):
        return _from_web(source, where), source[:100]
    path = _as_path(source, where)
    return _from_file(path, where), str(path)


def _as_path(source: object, where: str) -> Path:
    if isinstance(source, Path):
        return source
    if isinstance(source, str):
        return check_path(source, where).expanduser()
    raise InvalidInputError(
        f"{where} must be a path, an address, a data URL or an image of Pillow, not "
        f"{described(source)}"
    )


def _from_file(path: Path, where: str) -> bytes:
    if path.is_dir():
        raise InvalidInputError(f"{where}, {path}, is a folder; name a file in it")
    try:
        status = path.stat()
        if S_ISREG(status.st_mode) and status.st_size <= MOST_BYTES:
            return path.read_bytes()
    except FileNotFoundError as error:
        raise InvalidInputError(f"{where}, {path}, does not exist") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise InvalidInputError(f"{where}, {path}, cannot be read: {reason}") from error
    _check_size(status.st_size, f"{where}, {path},")
    raise InvalidInputError(f"{where}, {path}, is a device, a pipe or a socket; name a file")


def _from_data(address: str, where: str) -> bytes:
    head, comma, body = address.partition(",")
    if not comma:
        raise InvalidInputError(f"{where} is a data URL without a comma, so it has no content")
    _check_size(len(body) * 3 // 4, where)
    if not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(unquote_to_bytes(body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError(f"{where} is a data URL that is no base64: {error}") from error


def _from_web(address: str, where: str) -> bytes:
    try:
        request = Request(address, headers={"User-Agent": "treesnake"})
        with urlopen(request, timeout=PATIENCE_S) as answer:
            content = answer.read(MOST_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise InvalidInputError(
            f"{where}, {address:.100}, cannot be fetched: {reason_of(error)}"
        ) from error
    _check_size(len(content), f"{where}, {address:.100},")
    return content


def _check_size(num_bytes: int, what: str) -> None:
    if num_bytes > MOST_BYTES:
        raise InvalidInputError(
            f"{what} is larger than {MOST_BYTES // 2**20} MiB; make the image smaller"
        )
