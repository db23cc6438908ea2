"""Images from outside: what cannot be read is named, and nothing else is looked at."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from treesnake import images
from treesnake.conversation import check_messages, image_sources, render
from treesnake.errors import InvalidInputError
from treesnake.images import check_image_part, read_image

RED = Image.new("RGB", (3, 2), (255, 0, 0))


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_every_source_gives_the_same_image(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(as_png(RED))
    encoded = base64.b64encode(as_png(RED)).decode()
    address = f"data:image/png;base64,{encoded}"
    parts: list[dict[str, Any]] = [
        {"image": RED},
        {"image": RED.convert("P")},
        {"image": str(path)},
        {"image": path},
        {"path": path},
        {"path": str(path)},
        {"url": address},
        {"image": address},
        {"base64": encoded},
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "image_url", "image_url": address},
    ]
    for part in parts:
        source = check_image_part({"type": "image", **part}, "part 1 of message 1")
        found = read_image(source, "the image")
        assert (found.mode, found.size, found.tobytes()) == ("RGB", RED.size, RED.tobytes())


def test_an_image_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn it a quarter to the right
    path = tmp_path / "turned.png"
    RED.save(path, exif=exif)
    assert read_image(path, "the image").size == (2, 3)
    with Image.open(path) as opened:
        assert read_image(opened, "the image").size == (2, 3)


def test_an_address_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(request: Any, timeout: float) -> io.BytesIO:
        asked.append(request.full_url)
        return io.BytesIO(as_png(RED))

    monkeypatch.setattr(images, "urlopen", answer)
    assert read_image("https://example.org/red.png", "the image").tobytes() == RED.tobytes()
    assert asked == ["https://example.org/red.png"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("missing.png", "the image, missing.png, does not exist"),
        (".", r"the image, \., is a folder; name a file in it"),
        ("/dev/null", "^the image, /dev/null, is a device, a pipe or a socket"),
        ("a\0b", "cannot be read: embedded null"),
        (3, "must be a path, an address, a data URL or an image of Pillow, not 3"),
        ("data:image/png;base64", "data URL without a comma"),
        ("data:image/png;base64,???", "data URL that is no base64"),
        ("data:text/plain,hello", "a data URL, cannot be read: it is no image of a kind"),
        ("http://", "cannot be fetched"),
        ("http://example.org:80 80/cat.png", "cannot be fetched: "),
        ("http://exa mple.org/cat.png", "cannot be fetched: "),
    ],
)
def test_what_is_no_image_is_named(source: Any, expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        read_image(source, "the image")


def test_broken_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broken.png"
    for content, expected in (
        (b"", "it is empty"),
        (b"no image", "it is no image of a kind that Pillow reads, or it is broken"),
        (as_png(Image.effect_noise((64, 64), 80))[:900], "broken.png, cannot be read: "),
    ):
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=expected):
            read_image(path, "the image")
    monkeypatch.setattr(images, "MOST_BYTES", 10)
    with pytest.raises(InvalidInputError, match="larger than 0 MiB"):
        read_image(path, "the image")


def test_an_image_of_pillow_that_is_cut_off_is_named() -> None:
    noise = as_png(Image.effect_noise((64, 64), 80))
    opened = Image.open(io.BytesIO(noise[:900]))
    with pytest.raises(InvalidInputError, match="an image of Pillow, cannot be read: "):
        read_image(opened, "the image")


def test_whatever_a_reader_of_pillow_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: object) -> None:
        raise RuntimeError("no frame")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(InvalidInputError, match="a data URL, cannot be read: no frame"):
        read_image("data:,x", "the image")


def test_an_image_beyond_all_measure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    address = f"data:image/png;base64,{base64.b64encode(as_png(RED)).decode()}"
    with pytest.raises(InvalidInputError, match=r"cannot be read: .*decompression bomb"):
        read_image(address, "the image")


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "image"}, "part 1 of message 1 has no image: write"),
        ({"type": "image", "path": "a.png", "url": "b"}, "part 1 of message 1 has 2 images"),
        ({"type": "image_url", "image_url": {}}, "has no image"),
        ({"type": "image", "path": 3}, "must be a path"),
    ],
)
def test_a_part_says_once_where_its_image_is(part: Any, expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        check_messages([{"role": "user", "content": [part]}])


def test_a_template_is_told_of_images_and_shown_none() -> None:
    image = {"type": "image", "path": "a.png"}
    messages = check_messages(
        [
            {"role": "user", "content": [image, {"type": "text", "text": "What?"}, image]},
            {"role": "assistant", "content": "That."},
        ]
    )
    assert [where for where, _ in image_sources(messages)] == [
        "the image in part 1 of message 1",
        "the image in part 3 of message 1",
    ]

    def reads_parts(shown: Any) -> str:
        parts = [part for message in shown for part in message["content"]]
        return " ".join(part.get("text", "<image>") for part in parts)

    assert render(messages, reads_parts) == "<image> What? <image> That."
