"""Reads GGUF, the file format of llama.cpp: metadata, and tensors one at a time as float32.

Versions 2 and 3, little-endian. Metadata and shapes are read of any file, tensors in F32, Q4_1 and
Q8_0 only: the types of the embedded default model, which therefore needs no other package.

Source: the GGUF specification (docs/gguf.md of ggml) and the block layouts of ggml-common.h there.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from treesnake.errors import LoadError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

STRING_KIND, ARRAY_KIND = 8, 9
NUMBER_FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}

F32, Q4_1, Q8_0 = 0, 3, 8
BLOCK_WIDTH = 32  # values that share one scale in Q4_1 and Q8_0


@dataclass(frozen=True)
class GgufEntry:
    """Where one tensor lies: its shape in torch's order, its ggml type and its first byte."""

    shape: tuple[int, ...]
    ggml_type: int
    start: int

    @property
    def num_elements(self) -> int:
        """The number of values, however they are packed."""
        return math.prod(self.shape)


class GgufFile(Mapping[str, Tensor]):
    """The tensors of a GGUF file by their names there, each read whenever it is asked for.

    Raises:
        LoadError: if the file is not GGUF, cut off or of another version, or a tensor that is asked
            for is of a type not known here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as stream:
            self.metadata, self.entries = _HeaderReader(stream, path).read()

    def __getitem__(self, name: str) -> Float32[Tensor, "..."]:
        entry = self.entries[name]
        if entry.ggml_type == F32:
            values = self._read(name, 4 * entry.num_elements).view(np.float32)
        elif entry.ggml_type == Q4_1:
            values = dequantise_q4_1(self._read(name, 20 * entry.num_elements // BLOCK_WIDTH))
        elif entry.ggml_type == Q8_0:
            values = dequantise_q8_0(self._read(name, 34 * entry.num_elements // BLOCK_WIDTH))
        else:
            raise LoadError(
                f"{name} of {self.path} has ggml type {entry.ggml_type}; only {F32} (F32), "
                f"{Q4_1} (Q4_1) and {Q8_0} (Q8_0) are read here"
            )
        return torch.from_numpy(values.reshape(entry.shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def num_bytes_as(self, dtype: torch.dtype) -> int:
        """Returns the size of all tensors once unpacked to a dtype."""
        return sum(entry.num_elements for entry in self.entries.values()) * dtype.itemsize

    def _read(self, name: str, num_bytes: int) -> UInt8[np.ndarray, " bytes"]:
        raw = np.fromfile(self.path, np.uint8, num_bytes, offset=self.entries[name].start)
        if raw.size != num_bytes:
            raise LoadError(f"{self.path} is cut off in the middle of {name}; fetch it again")
        return raw


def dequantise_q4_1(
    raw: UInt8[np.ndarray, " bytes"],
) -> Float32[np.ndarray, "blocks width"]:
    """Unpacks blocks of a half-precision scale, a half-precision minimum and 32 numbers of 4 bits.

    A byte holds number i in its low bits and number i + 16 in its high bits; a value is
    scale * number + minimum.
    """
    blocks = raw.reshape(-1, 20)
    scales, minima = blocks[:, :4].copy().view(np.float16).astype(np.float32).T[:, :, None]
    numbers = np.concatenate([blocks[:, 4:] & 0xF, blocks[:, 4:] >> 4], axis=1)
    return scales * numbers.astype(np.float32) + minima


def dequantise_q8_0(
    raw: UInt8[np.ndarray, " bytes"],
) -> Float32[np.ndarray, "blocks width"]:
    """Unpacks blocks of a half-precision scale and 32 signed bytes; a value is scale * byte."""
    blocks = raw.reshape(-1, 34)
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return scales * blocks[:, 2:].view(np.int8).astype(np.float32)


class _HeaderReader:
    """Reads a header from front to back, refusing lengths that the file cannot hold."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._remaining = path.stat().st_size

    def read(self) -> tuple[dict[str, Any], dict[str, GgufEntry]]:
        if self._take(4) != MAGIC:
            raise LoadError(
                f"{self._path} is no GGUF file: it does not begin with the bytes {MAGIC!r}"
            )
        version, num_tensors, num_fields = (self._number(kind) for kind in "IQQ")
        if version not in VERSIONS:
            raise LoadError(
                f"{self._path} is GGUF version {version}; versions 2 and 3 are read here"
            )
        metadata = {self._string(): self._value(self._number("I")) for _ in range(num_fields)}
        table = {self._string(): self._tensor_info() for _ in range(num_tensors)}
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        data_start = -(-self._stream.tell() // alignment) * alignment
        entries = {
            name: GgufEntry(shape, ggml_type, data_start + offset)
            for name, (shape, ggml_type, offset) in table.items()
        }
        return metadata, entries

    def _tensor_info(self) -> tuple[tuple[int, ...], int, int]:
        num_axes = self._number("I")
        # ggml counts axes from the fastest one, torch from the slowest.
        shape = self._numbers("Q", num_axes)[::-1]
        return shape, self._number("I"), self._number("Q")

    def _value(self, kind: int) -> Any:
        if kind == STRING_KIND:
            return self._string()
        if kind == ARRAY_KIND:
            return self._array()
        return self._number(self._format(kind))

    def _array(self) -> list[Any]:
        kind, length = self._number("I"), self._number("Q")
        if kind == STRING_KIND:
            return [self._string() for _ in range(length)]
        if kind == ARRAY_KIND:
            return [self._array() for _ in range(length)]
        return list(self._numbers(self._format(kind), length))

    def _format(self, kind: int) -> str:
        if kind not in NUMBER_FORMATS:
            raise LoadError(f"{self._path} holds metadata of unknown kind {kind}; fetch it again")
        return NUMBER_FORMATS[kind]

    def _string(self) -> str:
        num_bytes = int.from_bytes(self._take(8), "little")
        try:
            return self._take(num_bytes).decode("utf-8")
        except UnicodeDecodeError as error:
            raise LoadError(
                f"{self._path} holds broken text in its header; fetch it again"
            ) from error

    def _number(self, number_format: str) -> Any:
        return self._numbers(number_format, 1)[0]

    def _numbers(self, number_format: str, length: int) -> tuple[Any, ...]:
        return struct.unpack(
            f"<{length}{number_format}",
            self._take(length * struct.calcsize(f"<{number_format}")),
        )

    def _take(self, num_bytes: int) -> bytes:
        self._remaining -= num_bytes
        if self._remaining < 0:
            raise LoadError(
                f"{self._path} is cut off or broken: its header reaches beyond its end; "
                "fetch it again"
            )
        return self._stream.read(num_bytes)
