"""Reads GGUF, the file format of llama.cpp: metadata, and tensors one at a time.

Versions 2 and 3, little-endian, in one file or in parts. Metadata and shapes are read of any file.
Tensors are read in every format but the codebooks (IQ1, IQ2, IQ3) and the ternary ones, for which
ggml's own package is asked.

This is the gate for all readers of a GGUF file, transformers' included. A file is refused before
anything of the sizes that it claims is allocated, if names occur twice, or tensors reach beyond its
end or into each other.

Source: the GGUF specification (docs/gguf.md of ggml) and the block layouts of ggml-common.h there.
"""

import math
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from treesnake.errors import LoadError
from treesnake.kernels.grouped_weight import GroupedWeight
from treesnake.kernels.matrices import round_to_groups
from treesnake.models.gguf_blocks import GROUPED_TYPES, STORED_BITS, unpack
from treesnake.models.pointers import check_no_pointer
from treesnake.models.weights import Stacked, StoredTensor, Weights

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

PLAIN_TYPES = {
    0: torch.float32,
    1: torch.float16,
    24: torch.int8,
    25: torch.int16,
    26: torch.int32,
    27: torch.int64,
    28: torch.float64,
    30: torch.bfloat16,
}
"""The ggml types whose values stand alone."""

OTHER_BITS = 8
"""In how many bits matrices run as stored if their format has no groups like ours."""

TYPE_NAMES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    20: "IQ4_NL",
    23: "IQ4_XS",
    30: "BF16",
    39: "MXFP4",
}
"""What the usual ggml types are called."""

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


PART_NAME = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
"""How llama.cpp names the files of a split model."""

MAX_PARTS = 1000


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """A tensor in a GGUF file.

    Attributes:
        path: the file.
        shape: in torch's order.
        ggml_type: the format.
        start: the first byte.
        order: which stored row each row is, or None for the order of the file.
        offset: what is added to the stored values.
    """

    path: Path
    shape: tuple[int, ...]
    ggml_type: int
    start: int
    order: Int[np.ndarray, " rows"] | None = None
    offset: float = 0.0

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
        """The first byte behind it, where it has its own order."""
        return self.start + self.num_bytes

    @property
    def dtype(self) -> torch.dtype:
        """That it is read in: its own, or float32 if it is packed."""
        return PLAIN_TYPES.get(self.ggml_type, torch.float32)

    @property
    def is_packed(self) -> bool:
        """Whether it has fewer bits than a float of its own for each value."""
        return self.ggml_type not in PLAIN_TYPES

    @property
    def stored_bits(self) -> int:
        """In how many bits each value of a matrix runs as stored."""
        return STORED_BITS.get(self.ggml_type, OTHER_BITS)

    def rows(self, begin: int, end: int) -> "GgufTensor":
        """Returns some of the rows, as if they were a tensor of their own."""
        length, *axes = self.shape
        begin, end = min(begin, length), min(end, length)
        shape = (end - begin, *axes)
        if self.order is not None:
            return replace(self, shape=shape, order=self.order[begin:end])
        return replace(
            self, shape=shape, start=self.start + begin * self.num_bytes // max(length, 1)
        )

    def read(self, name: str) -> Float[Tensor, "..."]:
        """Reads it, in the bits that ggml gives its values, and adds the offset.

        Raises:
            LoadError: if the file is cut off, or the format is not known.
        """
        stored = self._read_values(name)
        return stored + self.offset if self.offset else stored

    def _read_values(self, name: str) -> Float[Tensor, "..."]:
        if self.num_elements == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        raw = self._read_rows(name)
        if not self.is_packed:
            return torch.from_numpy(raw).reshape(-1).view(self.dtype).reshape(self.shape)
        if self.ggml_type in GROUPED_TYPES:
            values = unpack(raw, self.ggml_type).values()
        else:
            values = _dequantise(raw, self.ggml_type, f"{name} of {self.path}")
        return torch.from_numpy(values).reshape(self.shape)

    def read_grouped(self, name: str) -> GroupedWeight:
        """Reads a packed matrix with the numbers and groups that it has.

        Scales are rounded to half precision. Formats that the groups of a `GroupedWeight` cannot
        hold are rounded to 8 bits.
        """
        if self.ggml_type in GROUPED_TYPES:
            groups = unpack(self._read_rows(name), self.ggml_type)
            if groups.fits_weight:
                return groups.to_weight()
        return round_to_groups(self.read(name), 8)

    def _read_rows(self, name: str) -> UInt8[np.ndarray, "rows row_bytes"]:
        num_stored = self.shape[0] if self.shape else 1
        if self.order is None:
            return self._read_stored(name, num_stored)
        last = int(self.order.max(initial=-1))
        return self._read_stored(name, last + 1)[self.order]

    def _read_stored(self, name: str, num_rows: int) -> UInt8[np.ndarray, "rows row_bytes"]:
        width, block_bytes = BLOCKS[self.ggml_type]
        row_bytes = math.prod(self.shape[1:]) // width * block_bytes
        if len(self.shape) < 2:
            num_rows, row_bytes = 1, self.num_bytes
        raw = np.fromfile(self.path, np.uint8, num_rows * row_bytes, offset=self.start)
        if raw.size != num_rows * row_bytes:
            raise LoadError(f"{self.path} is cut off in the middle of {name}; fetch it again")
        return raw.reshape(num_rows, row_bytes)


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix in a GGUF file, which is read as the integers that it is."""

    tensor: GgufTensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the values that it stands for."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """In torch's order."""
        return self.tensor.shape

    @property
    def num_elements(self) -> int:
        """The number of values."""
        return self.tensor.num_elements

    @property
    def num_bytes(self) -> int:
        """The size as stored."""
        return self.tensor.num_bytes

    def rows(self, begin: int, end: int) -> "PackedMatrix":
        """Returns some of the rows."""
        return PackedMatrix(self.tensor.rows(begin, end))

    def read(self, name: str) -> GroupedWeight:
        """Reads it; the name is for messages."""
        return self.tensor.read_grouped(name)


def kept_packed(weights: Weights) -> Weights:
    """Returns tensors of GGUF files of which packed matrices are read as `GroupedWeight`.

    They come behind all others: the first of a mapping of tensors is a tensor.
    """
    kept = {name: _kept_packed(entry) for name, entry in weights.entries.items()}
    packed = {name: entry for name, entry in kept.items() if entry is not None}
    others = {name: entry for name, entry in weights.entries.items() if name not in packed}
    return Weights(others | packed)


def _kept_packed(entry: StoredTensor) -> StoredTensor | None:
    """Returns a packed matrix, or several below each other, as it is to be read, or None."""
    if isinstance(entry, Stacked):
        parts = [part for part in map(_kept_packed, entry.parts) if part is not None]
        return Stacked(tuple(parts)) if len(parts) == len(entry.parts) else None
    if isinstance(entry, GgufTensor) and entry.is_packed and len(entry.shape) == 2:
        return PackedMatrix(entry)
    return None


def describe_formats(weights: Mapping[str, StoredTensor]) -> str:
    """Returns how many matrices have which format, and in how many bits they run as stored."""
    counts = Counter(format_of(each) for each in stored_parts(weights) if len(each.shape) == 2)
    parts: dict[int, list[str]] = {}
    for (name, num_bits), count in counts.most_common():
        parts.setdefault(num_bits, []).append(f"{count} {name}")
    return "; ".join(f"{', '.join(parts[bits])} in {bits} bits" for bits in sorted(parts))


def format_of(entry: StoredTensor) -> tuple[Any, int]:
    """Returns the name of a tensor's format, and in how many bits a matrix of it runs as stored."""
    if isinstance(entry, GgufTensor):
        return TYPE_NAMES.get(entry.ggml_type, entry.ggml_type), entry.stored_bits
    return str(entry.dtype).removeprefix("torch."), OTHER_BITS


def stored_parts(weights: Mapping[str, StoredTensor]) -> list[StoredTensor]:
    """Returns all tensors, and of those below each other each one."""
    return [
        part
        for entry in weights.values()
        for part in (entry.parts if isinstance(entry, Stacked) else (entry,))
    ]


def mean_bits(weights: Mapping[str, GgufTensor]) -> float:
    """Returns in how many bits the values of matrices run as stored, on average."""
    matrices = [tensor for tensor in weights.values() if len(tensor.shape) == 2]
    num_values = sum(tensor.num_elements for tensor in matrices)
    num_bits = sum(tensor.num_elements * tensor.stored_bits for tensor in matrices)
    return num_bits / max(num_values, 1)


class GgufFile(Weights):
    """The tensors of a GGUF file by their names there, each read whenever it is asked for.

    Any part of a split model stands for all of it.

    Attributes:
        path: the file, of a split model the first part.
        metadata: what it says of the model.
        tensors: all of them by name.

    Raises:
        LoadError: if the file is not GGUF, cut off, broken or of another version, or a part is
            missing.
    """

    def __init__(self, path: Path) -> None:
        metadata, tensors = _read_header(path)
        self.path, self.metadata, self.tensors = path, metadata, tensors
        if self.is_split:
            parts = part_paths(path, metadata["split.count"])
            self.path, self.metadata, self.tensors = _read_parts(parts)
        super().__init__(self.tensors)

    @property
    def is_split(self) -> bool:
        """Whether there are several parts."""
        return self.metadata.get("split.count", 1) not in (0, 1)


def _read_parts(paths: Sequence[Path]) -> tuple[Path, dict[str, Any], dict[str, GgufTensor]]:
    """Returns the first part, what it says of the model, and the tensors of all parts."""
    parts = [_read_header(path) for path in paths]
    tensors: dict[str, GgufTensor] = {}
    for number, (path, (metadata, found)) in enumerate(zip(paths, parts, strict=True)):
        stated = metadata.get("split.no"), metadata.get("split.count")
        if stated != (number, len(paths)):
            raise LoadError(
                f"{path} says that it is part {stated[0]!r:.20} (counted from 0) of "
                f"{stated[1]!r:.20}, against its name; fetch it again"
            )
        if twice := sorted(tensors.keys() & found.keys()):
            raise LoadError(f"{path} holds {twice[0]!r:.80}, and so does an earlier part")
        tensors |= found
    metadata = parts[0][0]
    promised = metadata.get("split.tensors.count", len(tensors))
    if promised != len(tensors):
        raise LoadError(
            f"{paths[0]} promises {promised!r:.20} tensors in its {len(paths)} parts, which hold "
            f"{len(tensors)}; fetch them again"
        )
    return paths[0], metadata, tensors


def part_paths(path: Path, count: Any) -> list[Path]:
    """Returns all files of a split model, given one of them and their number.

    Raises:
        LoadError: if one is missing, or the file is not called as parts are.
    """
    name = PART_NAME.search(path.name)
    if name is None or int(name[2]) != count or not 1 < int(name[2]) <= MAX_PARTS:
        raise LoadError(
            f"{path} is one of {count!r:.20} parts of a split model, which are known by their "
            "names, such as model-00001-of-00003.gguf; give them their names back"
        )
    paths = [
        path.with_name(f"{path.name[: name.start(1)]}{number:05}{path.name[name.end(1) :]}")
        for number in range(1, int(name[2]) + 1)
    ]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise LoadError(
            f"{path.parent} lacks {len(missing)} of {len(paths)} parts of a split model, "
            f"{missing[0]} first; fetch them"
        )
    return paths


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    try:
        check_no_pointer(path)
        with path.open("rb") as stream:
            metadata, entries = _HeaderReader(stream, path).read()
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    _check_bounds(entries, path)
    return metadata, entries


def _dequantise(
    raw: UInt8[np.ndarray, "rows row_bytes"], ggml_type: int, what: str
) -> Float[np.ndarray, "rows width"]:
    """Unpacks a format that only ggml's own package knows."""
    if find_spec("gguf") is None:
        raise LoadError(
            f"{what} has ggml type {ggml_type}, which needs the package gguf; install "
            "treesnake[gguf]"
        )
    from gguf import GGMLQuantizationType  # noqa: PLC0415
    from gguf.quants import dequantize  # noqa: PLC0415

    try:
        return dequantize(raw, GGMLQuantizationType(ggml_type))
    except NotImplementedError as error:
        raise LoadError(
            f"{what} has ggml type {ggml_type}, which is not read here; take another file"
        ) from error


class _HeaderReader:
    """Reads a header from front to back, refusing lengths that the file cannot hold."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._remaining = path.stat().st_size

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
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
            entries[name] = GgufTensor(self._path, shape, ggml_type, data_start + offset)
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


def _check_bounds(entries: Mapping[str, GgufTensor], path: Path) -> None:
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
