"""Writes GGUF files byte by byte, also those that no honest writer would make."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from treesnake.models.gguf import ARRAY_KIND, MAGIC, NUMBER_FORMATS, STRING_KIND

INT_KIND, FLOAT_KIND = 4, 6

Value = str | int | float | bytes | Sequence[str] | Sequence[int]
"""Bytes are written as they are: a kind and a value of any sort."""


@dataclass(frozen=True)
class GgufTensor:
    """What a header says of a tensor: its shape in ggml's order, ggml type and offset."""

    shape: tuple[int, ...]
    ggml_type: int = 0
    offset: int = 0


def gguf_bytes(
    metadata: Sequence[tuple[str, Value]] = (),
    tensors: Sequence[tuple[str, GgufTensor]] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """Returns a whole file; names may occur twice and offsets be any number.

    Args:
        metadata: keys and values.
        tensors: names and what is said of them.
        data: what follows the header.
        version: of the format.
        alignment: of the first byte of the data.
    """
    header = MAGIC + struct.pack("<IQQ", version, len(tensors), len(metadata))
    header += b"".join(text_bytes(key) + value_bytes(value) for key, value in metadata)
    for name, tensor in tensors:
        header += text_bytes(name) + struct.pack("<I", len(tensor.shape))
        header += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
        header += struct.pack("<IQ", tensor.ggml_type, tensor.offset)
    return header + bytes(-len(header) % alignment) + data


def text_bytes(text: str) -> bytes:
    """Returns a text as GGUF has it, behind its length."""
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value_bytes(value: Value) -> bytes:
    """Returns a value behind its kind."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return struct.pack("<I", STRING_KIND) + text_bytes(value)
    if isinstance(value, int | float):
        kind = INT_KIND if isinstance(value, int) else FLOAT_KIND
        return struct.pack(f"<I{NUMBER_FORMATS[kind]}", kind, value)
    texts = [each for each in value if isinstance(each, str)]
    numbers = [each for each in value if isinstance(each, int)]
    kind = STRING_KIND if texts else INT_KIND
    content = b"".join(map(text_bytes, texts)) + struct.pack(f"<{len(numbers)}I", *numbers)
    return struct.pack("<IIQ", ARRAY_KIND, kind, len(value)) + content


def nested_arrays(number: int) -> bytes:
    """Returns an array of empty arrays."""
    empty = struct.pack("<IQ", INT_KIND, 0)
    return struct.pack("<IIQ", ARRAY_KIND, ARRAY_KIND, number) + empty * number
