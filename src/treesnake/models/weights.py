"""Reads checkpoints a tensor or a block of rows at a time, so that no more is in memory twice.

`Weights` are those of any kind of file, and what reads a safetensors file is here.

Files are read, not mapped: the pages of a mapped file count as resident memory until the system
wants them back, which would add the size of the file to the peak of a conversion.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from treesnake.errors import LoadError
from treesnake.kernels.matrices import Matrix, below_each_other, in_floats
from treesnake.models.json_files import read_json_object
from treesnake.models.pointers import check_no_pointer

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# The bound of the reference implementation: a larger header means another kind of file.
MAX_HEADER_BYTES = 100_000_000

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "C128": torch.complex128,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@runtime_checkable
class StoredTensor(Protocol):
    """A tensor in a file: what is known of it without reading it, and how it is read."""

    @property
    def dtype(self) -> torch.dtype:
        """That it is read in."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """In torch's order."""
        ...

    @property
    def num_elements(self) -> int:
        """The number of values."""
        ...

    @property
    def num_bytes(self) -> int:
        """The size as stored."""
        ...

    def rows(self, begin: int, end: int) -> "StoredTensor":
        """Returns some of the rows, as if they were a tensor of their own."""
        ...

    def read(self, name: str) -> Any:
        """Reads it, as a tensor or as integers in groups; the name is for messages."""
        ...


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in a safetensors file: the file, dtype, shape and first byte."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def num_elements(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The size as stored."""
        return self.num_elements * self.dtype.itemsize

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + self.num_bytes

    def rows(self, begin: int, end: int) -> "TensorEntry":
        """Returns where some of the rows lie, as if they were a tensor of their own."""
        length, *axes = self.shape
        begin, end = min(begin, length), min(end, length)
        row_bytes = math.prod(axes) * self.dtype.itemsize
        shape = (end - begin, *axes)
        return replace(self, shape=shape, start=self.start + begin * row_bytes)

    def read(self, name: str) -> Tensor:
        """Reads it; the name is for messages."""
        raw = torch.empty(self.num_bytes, dtype=torch.uint8)
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            num_read = stream.readinto(raw.numpy().data)
        if num_read != self.num_bytes:
            raise LoadError(
                f"{self.path} ended in the middle of {name}: was it changed after it was opened?"
            )
        return raw.view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class InMemory:
    """A stored tensor that has been read."""

    tensor: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Its own."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its own."""
        return tuple(self.tensor.shape)

    @property
    def num_elements(self) -> int:
        """The number of values."""
        return self.tensor.numel()

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        return self.tensor.nbytes

    def rows(self, begin: int, end: int) -> "InMemory":
        """Returns some of the rows."""
        return InMemory(self.tensor[begin:end])

    def read(self, name: str) -> Shaped[Tensor, "..."]:
        """Returns it."""
        del name
        return self.tensor


@dataclass(frozen=True)
class Stacked:
    """Stored matrices of one width and dtype, one under the other."""

    parts: tuple[StoredTensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        """That of each part."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all rows."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def num_elements(self) -> int:
        """The number of values."""
        return sum(part.num_elements for part in self.parts)

    @property
    def num_bytes(self) -> int:
        """The size as stored."""
        return sum(part.num_bytes for part in self.parts)

    def rows(self, begin: int, end: int) -> InMemory:
        """Returns some of the rows, which are read at once."""
        return InMemory(in_floats(self.read("rows"))[begin:end])

    def read(self, name: str) -> Matrix:
        """Reads all rows: as integers in groups, if all parts are such of one form."""
        return below_each_other([part.read(name) for part in self.parts])


class Weights(Mapping[str, Any]):
    """The tensors of a checkpoint by name, each read from disk whenever it is asked for.

    Matrices of a packed file may be read as the integers that they are; see `kept_packed`. Nothing
    is kept: a tensor that the caller drops is gone, and one asked for twice is read twice.
    """

    def __init__(self, entries: Mapping[str, StoredTensor]) -> None:
        self.entries = entries

    def __getitem__(self, name: str) -> Any:
        return self.entries[name].read(name)

    def rows(self, name: str, begin: int, end: int) -> Any:
        """Reads some rows of a tensor."""
        return self.entries[name].rows(begin, end).read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    @property
    def num_bytes(self) -> int:
        """The size of all tensors as stored."""
        return sum(entry.num_bytes for entry in self.entries.values())

    def num_bytes_as(self, dtype: torch.dtype) -> int:
        """Returns the size of all tensors once those of floating point have another dtype."""
        return sum(
            entry.num_elements * (dtype if entry.dtype.is_floating_point else entry.dtype).itemsize
            for entry in self.entries.values()
        )


def open_weights(folder: Path) -> Weights:
    """Opens the safetensors checkpoint of a folder, in one file or in shards; reads headers only.

    Raises:
        LoadError: if there is none, shards are missing, or a file is cut off or no safetensors.
    """
    if (folder / INDEX_FILE).is_file():
        return Weights(_sharded_entries(folder))
    if (folder / SINGLE_FILE).is_file():
        return Weights(read_header(folder / SINGLE_FILE))
    raise LoadError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}{without_index(folder)}")


def read_blocks(
    tensors: Mapping[str, Tensor], name: str, num_rows: int
) -> Iterator[Shaped[Tensor, " rows *axes"]]:
    """Yields a tensor `num_rows` rows at a time; of one on disk only these are read at once."""
    if not isinstance(tensors, Weights):
        tensor = tensors[name]
        for begin in range(0, len(tensor), num_rows):
            yield tensor[begin : begin + num_rows]
        return
    for begin in range(0, tensors.entries[name].shape[0], num_rows):
        yield tensors.rows(name, begin, begin + num_rows)


def exact_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> torch.dtype:
    """Returns the smallest dtype that holds the matrices of a checkpoint as exactly as `dtype`.

    That is another one if float32 is asked of a checkpoint whose matrices are all of one dtype in
    half precision: as float32 they would be the same numbers, of twice the bytes.
    """
    if dtype != torch.float32:
        return dtype
    if isinstance(tensors, Weights):
        kinds = {entry.dtype for entry in tensors.entries.values() if len(entry.shape) > 1}
    else:
        floats = [tensor for tensor in tensors.values() if isinstance(tensor, Tensor)]
        kinds = {tensor.dtype for tensor in floats if tensor.ndim > 1}
    is_half = kinds in ({torch.float16}, {torch.bfloat16})
    return kinds.pop() if is_half else dtype


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Reads where each tensor of one safetensors file lies.

    A tensor of a dtype that torch does not have is given as its bytes.

    Raises:
        LoadError: if the header makes no sense, or its tensors do not lie one behind the other from
            the first byte of the data to the last of the file.
    """
    check_no_pointer(path)
    file_bytes = path.stat().st_size
    with path.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
            raise LoadError(
                f"{path} is no safetensors file, or a broken one ({file_bytes} bytes, of which the "
                f"header should take {header_bytes}); fetch it again"
            )
        header = stream.read(header_bytes)
    start = 8 + header_bytes
    try:
        fields = json.loads(header.decode("utf-8"), object_pairs_hook=_distinct)
        fields.pop("__metadata__", None)
        entries = {name: _entry(path, start, field) for name, field in fields.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(
            f"{path} has a broken safetensors header ({error}); fetch it again"
        ) from error
    for name, entry in sorted(entries.items(), key=lambda named: (named[1].start, named[1].end)):
        if entry.start != start:
            fault = "overlaps" if entry.start < start else "leaves a gap behind"
            raise LoadError(
                f"{path} has a broken safetensors header ({name} {fault} the tensor before it); "
                "fetch it again"
            )
        start = entry.end
    if start > file_bytes:
        raise LoadError(
            f"{path} is cut off: its header promises {start} bytes, it has {file_bytes}; "
            "fetch it again"
        )
    if start < file_bytes:
        raise LoadError(
            f"{path} has {file_bytes - start} bytes behind its last tensor, which its header does "
            "not explain; fetch it again"
        )
    return entries


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(one for one, other in pairwise(names) if one == other)
        raise ValueError(f"it has {twice} twice")
    return fields


def _entry(path: Path, data_start: int, field: Mapping[str, Any]) -> TensorEntry:
    begin, end = field["data_offsets"]
    shape = tuple(field["shape"])
    numbers = (begin, end, *shape)
    if not all(type(number) is int and number >= 0 for number in numbers) or begin > end:
        raise ValueError(f"a tensor of shape {field['shape']!r:.80} at bytes {begin!r} to {end!r}")
    dtype = DTYPES.get(field["dtype"])
    if dtype is None:
        return TensorEntry(path, torch.uint8, (end - begin,), data_start + begin)
    entry = TensorEntry(path, dtype, shape, data_start + begin)
    if entry.num_bytes != end - begin:
        raise ValueError(f"a tensor of shape {field['shape']} at bytes {begin} to {end}")
    return entry


def _sharded_entries(folder: Path) -> dict[str, TensorEntry]:
    index = folder / INDEX_FILE
    files = read_json_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise LoadError(
            f"{index} is no index of shards: its weight_map should name a file for every tensor; "
            "fetch it again"
        )
    shards = sorted({Path(file).as_posix() for file in files.values()})
    # A shard is a plain file name: an index must not reach outside of its folder.
    missing = [
        shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()
    ]
    if missing:
        raise LoadError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing)}; "
            "fetch them again"
        )
    entries: dict[str, TensorEntry] = {}
    for shard in shards:
        found = read_header(folder / shard)
        if twice := sorted(found.keys() & entries.keys()):
            raise LoadError(
                f"{folder} has {twice[0]} in two of its shards, {entries[twice[0]].path.name} and "
                f"{shard}; fetch them again"
            )
        entries |= found
    lost = sorted(files.keys() - entries.keys())
    if lost:
        raise LoadError(
            f"{index} names {len(lost)} tensors that no shard holds, {lost[0]} first; "
            "fetch it again"
        )
    return entries


def without_index(folder: Path) -> str:
    """Returns a hint at shards that lie in a folder without the file that says what is in them."""
    shard = next(iter(sorted(folder.glob("*-of-*.safetensors"))), None)
    return f"; it holds shards such as {shard.name}: fetch their {INDEX_FILE}, too" if shard else ""
