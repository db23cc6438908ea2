"""Scenes: up to four coloured figures, one in each corner of a small picture."""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray

SIDE = 48
"""Pixels of a picture's side; each figure has a quarter of the picture."""

COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 40),
    "purple": (150, 50, 180),
    "white": (240, 240, 240),
}
SHAPES: Mapping[str, str] = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "cross": "crosses",
    "ring": "rings",
}
"""Names of shapes, with their plurals."""

CORNERS = ("top left", "top right", "bottom left", "bottom right")

BACKGROUND = 30
NOISE = 8.0
RADIUS = {True: 9.5, False: 6.0}
"""Of large and of small figures, in pixels."""


@dataclass(frozen=True)
class Figure:
    """A coloured shape.

    Attributes:
        color: one of `COLORS`.
        shape: one of `SHAPES`.
        is_large: whether it nearly fills its corner.
    """

    color: str
    shape: str
    is_large: bool

    @property
    def size(self) -> str:
        """Large or small, as a word."""
        return "large" if self.is_large else "small"

    @property
    def name(self) -> str:
        """Size, color and shape in words."""
        return f"{self.size} {self.color} {self.shape}"


Scene = Mapping[int, Figure]
"""Figures by the index of their corner in `CORNERS`, in rising order; at least one."""


def random_scene(rng: Random) -> Scene:
    """Returns a scene of one to four figures."""
    corners = sorted(rng.sample(range(4), rng.choice([1, 2, 2, 3, 3, 4])))
    return {corner: random_figure(rng) for corner in corners}


def random_figure(rng: Random) -> Figure:
    """Returns a figure of any color, shape and size."""
    return Figure(rng.choice([*COLORS]), rng.choice([*SHAPES]), rng.random() < 0.5)


def draw(scene: Scene, rng: Random) -> UInt8[ndarray, "side side 3"]:
    """Returns the picture of a scene, with noise from `rng`."""
    pixels = np.full((SIDE, SIDE, 3), BACKGROUND, float)
    half = SIDE // 2
    for corner, figure in scene.items():
        top, left = corner // 2 * half, corner % 2 * half
        pixels[top : top + half, left : left + half][_mask(figure)] = COLORS[figure.color]
    pixels += np.random.default_rng(rng.getrandbits(64)).normal(0, NOISE, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


def _mask(figure: Figure) -> Bool[ndarray, "half half"]:
    """Returns which pixels of its corner a figure covers."""
    half = SIDE // 2
    y, x = np.mgrid[0:half, 0:half] - (half - 1) / 2
    radius = RADIUS[figure.is_large]
    distance = np.hypot(x, y)
    in_square = (abs(x) <= radius) & (abs(y) <= radius)
    match figure.shape:
        case "circle":
            return distance <= radius
        case "square":
            return (abs(x) <= radius * 0.85) & (abs(y) <= radius * 0.85)
        case "triangle":
            return (abs(x) <= (y + radius) * 0.55) & (y <= radius * 0.8)
        case "cross":
            return in_square & ((abs(x) <= radius * 0.3) | (abs(y) <= radius * 0.3))
        case _:
            return (distance <= radius) & (distance >= radius * 0.55)


def as_png(pixels: UInt8[ndarray, "height width 3"], scale: int = 1) -> bytes:
    """Returns the file of a picture.

    Args:
        pixels: red, green and blue.
        scale: each pixel becomes a square of so many.
    """
    enlarged = pixels.repeat(scale, 0).repeat(scale, 1)
    height, width, _ = enlarged.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in enlarged)
    parts = [_png_part(b"IHDR", header), _png_part(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + _png_part(b"IEND", b"")


def _png_part(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
