"""Reads GGUF, the file format of llama.cpp: metadata, and tensors one at a time as float32.

Versions 2 and 3, little-endian. Metadata and shapes are read of any file, tensors in F32, Q4_1 and
Q8_0 only: the types of the embedded default model, which therefore needs no other package.

This is the gate for all readers of a GGUF file, transformers' included. A file is refused before
anything of the sizes that it claims is allocated, if names occur twice, or tensors reach beyond its
end or into each other.

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
from treesnake.models.pointers import check_no_pointer

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

BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 40),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
    41: (128, 18),  # Q1_0
}
"""For each ggml type, how many values of a row form a block, and the bytes that it takes."""

MAX_AXES = 4
MAX_ALIGNMENT = 1 << 20


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

    @property
    def num_bytes(self) -> int:
        """The size as stored."""
        width, num_bytes = BLOCKS[self.ggml_type]
        return self.num_elements // width * num_bytes

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + self.num_bytes


class GgufFile(Mapping[str, Tensor]):
    """The tensors of a GGUF file by their names there, each read whenever it is asked for.

    Raises:
        LoadError: if the file is not GGUF, cut off, broken or of another version, or a tensor that
            is asked for is of a type not known here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            check_no_pointer(path)
            with path.open("rb") as stream:
                self.metadata, self.entries = _HeaderReader(stream, path).read()
        except OSError as error:
            raise LoadError(f"{path} cannot be read: {error.strerror}") from error
        _check_bounds(self.entries, path)

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
        self._check_version(self._number("I"))
        num_tensors, num_fields = self._numbers("Q", 2)
        metadata: dict[str, Any] = {}
        for _ in range(num_fields):
            key = self._new_name(metadata)
            metadata[key] = self._value(key, self._number("I"))
        table: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(num_tensors):
            name = self._new_name(table)
            table[name] = self._tensor_info(name)
        alignment = self._alignment(metadata)
        data_start = -(-self._stream.tell() // alignment) * alignment
        entries = {}
        for name, (shape, ggml_type, offset) in table.items():
            if offset % alignment:
                raise self._broken(f"{name!r:.80} begins at byte {offset}, off {alignment}")
            entries[name] = GgufEntry(shape, ggml_type, data_start + offset)
        return metadata, entries

    def _check_version(self, version: int) -> None:
        if version in VERSIONS:
            return
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in VERSIONS:
            raise LoadError(
                f"{self._path} is big-endian, made for other machines; little-endian files are "
                "read here: fetch that one"
            )
        raise LoadError(f"{self._path} is GGUF version {version}; versions 2 and 3 are read here")

    def _alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        is_whole = type(alignment) is int and 1 <= alignment <= MAX_ALIGNMENT
        if not is_whole or alignment & (alignment - 1):
            raise self._broken(f"its alignment is {alignment!r:.40}, which is no power of two")
        return alignment

    def _new_name(self, known: Mapping[str, object]) -> str:
        name = self._string()
        if name in known:
            raise self._broken(f"it holds {name!r:.80} twice")
        return name

    def _tensor_info(self, name: str) -> tuple[tuple[int, ...], int, int]:
        num_axes = self._number("I")
        if num_axes > MAX_AXES:
            raise self._broken(f"{name!r:.80} has {num_axes} axes; {MAX_AXES} is the most")
        # ggml counts axes from the fastest one, torch from the slowest.
        shape = self._numbers("Q", num_axes)[::-1]
        ggml_type, offset = self._number("I"), self._number("Q")
        if ggml_type not in BLOCKS:
            raise self._broken(f"{name!r:.80} has ggml type {ggml_type}, which is not known here")
        width = BLOCKS[ggml_type][0]
        if (shape[-1] if shape else 1) % width:
            raise self._broken(
                f"{name!r:.80} of ggml type {ggml_type} has rows of {shape[-1] if shape else 1} "
                f"values, which is no multiple of {width}"
            )
        return shape, ggml_type, offset

    def _broken(self, what: str) -> LoadError:
        return LoadError(f"{self._path} is broken: {what}; fetch it again")

    def _value(self, key: str, kind: int) -> Any:
        if kind == STRING_KIND:
            return self._string()
        if kind == ARRAY_KIND:
            return self._array(key)
        return self._number(self._format(kind))

    def _array(self, key: str) -> list[Any]:
        kind, length = self._number("I"), self._number("Q")
        if kind == STRING_KIND:
            return [self._string() for _ in range(length)]
        if kind == ARRAY_KIND:
            raise self._broken(f"{key!r:.80} is an array of arrays, which no reader knows")
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


def is_gguf(path: Path) -> bool:
    """Tells whether a file begins as GGUF files do; its name does not matter.

    Raises:
        LoadError: if it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error


def _check_bounds(entries: Mapping[str, GgufEntry], path: Path) -> None:
    """Refuses tensors beyond the end of the file, and those that share bytes."""
    file_bytes, reached, before = path.stat().st_size, 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.end > file_bytes:
            raise LoadError(
                f"{path} is cut off or broken: {name!r:.80} with the shape {list(entry.shape)} "
                f"should end at byte {entry.end}, the file at {file_bytes}; fetch it again"
            )
        if entry.start < reached and entry.num_bytes:
            raise LoadError(
                f"{path} is broken: {name!r:.80} begins within {before!r:.80}; fetch it again"
            )
        reached, before = max(reached, entry.end), name
