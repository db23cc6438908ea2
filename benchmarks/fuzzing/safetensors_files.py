"""What is done to a safetensors file: its header as plain data, and its bytes."""

import copy
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save

from fuzzing.mutations import ODD_NAMES, mutate_bytes, mutate_value, to_json

ODD_DTYPES = ("F16", "BF16", "F64", "I32", "I8", "U8", "U32", "U64", "F8_E4M3", "F8_E8M0", "BOOL")
ODD_DTYPES += ("C64", "F4", "float32", "", "F128")
REAL_DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64)
PREFIXES = ("module.", "model.", "backbone.", "base_model.model.", "_orig_mod.")
ODD_NUMBERS = (float("nan"), float("inf"), 1e-42, 3e38, 0.0)

Header = dict[str, Any]


def mutate_safetensors(content: bytes, random: Random) -> tuple[bytes, str]:
    """Changes one thing of a file of weights."""
    try:
        (size,) = struct.unpack("<Q", content[:8])
        header: Header = json.loads(content[8 : 8 + size])
        blob = content[8 + size :]
    except (ValueError, struct.error, RecursionError):  # it was mutated before
        return mutate_bytes(content, random)
    change = random.choice(CHANGES)
    try:
        return change(header, blob, content, random)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        changed, said = mutate_bytes(content, random)  # for what was mutated before
        return changed, f"{said} (instead of {change.__name__}: {type(error).__name__})"
    except Exception:  # noqa: BLE001 - the reader's own errors, which are of no class in common
        return mutate_bytes(content, random)


def encode(header: Header, blob: bytes, names: str | None = None) -> bytes:
    """Puts a file together; `names` is a header as text instead."""
    text = to_json(header) if names is None else names.encode()
    return struct.pack("<Q", len(text)) + text + blob


def _tensors(content: bytes) -> dict[str, torch.Tensor]:
    """Returns all tensors by name, in the order of the names: safetensors has another each time."""
    return dict(sorted(load(content).items()))


def _one(header: Header, random: Random) -> str:
    return random.choice([name for name in header if name != "__metadata__"])


def _rename(header: Header, blob: bytes, _: bytes, random: Random) -> tuple[bytes, str]:
    if random.random() < 0.5:
        prefix = random.choice(PREFIXES)
        names = {name: prefix + name for name in header if name != "__metadata__"}
        if random.random() < 0.5:
            names = {name: name.removeprefix(prefix) for name in names}
        renamed = {names.get(name, name): entry for name, entry in header.items()}
        return encode(renamed, blob), f"all names with or without {prefix}"
    name, other = _one(header, random), _one(header, random)
    other = random.choice((other, *ODD_NAMES, name.replace("layers.0", "layers.7")))
    if random.random() < 0.5 and other in header:
        header[name], header[other] = header[other], header[name]
        return encode(header, blob), f"{name} and {other} change places"
    header[other] = header.pop(name)
    return encode(header, blob), f"{name} is called {other[:30]!r}"


def _drop(header: Header, blob: bytes, content: bytes, random: Random) -> tuple[bytes, str]:
    tensors = _tensors(content)
    name = _one(header, random)
    del tensors[name]
    return save(tensors, {"format": "pt"}), f"{name} is dropped"


def _double(header: Header, blob: bytes, _: bytes, random: Random) -> tuple[bytes, str]:
    name, other = _one(header, random), _one(header, random)
    text = to_json(header).decode("utf-8", "replace")
    again = json.dumps({name: header[other]})[1:-1]
    return encode(header, blob, "{" + again + "," + text[1:]), f"{name} twice, first as {other}"


def _shape(header: Header, blob: bytes, _: bytes, random: Random) -> tuple[bytes, str]:
    name = _one(header, random)
    shape = list(header[name]["shape"])
    count = 1
    for side in shape:
        count *= side
    shapes: tuple[Any, ...] = (
        shape[::-1],
        [count],
        [*shape, 1],
        [1, *shape],
        [shape[0] * 2, *shape[1:]],
        [shape[0] // 2, *shape[1:]],
        [shape[0] + 1, *shape[1:]],
        [-1, *shape[1:]],
        [2**40, *shape[1:]],
        [0],
        [],
        [2**32, 2**32],
        [count // 2, 2],
        "32",
        [1.5],
        [None],
    )
    header[name]["shape"] = random.choice(shapes)
    return encode(header, blob), f"{name} has shape {header[name]['shape']}"


def _dtype(header: Header, blob: bytes, _: bytes, random: Random) -> tuple[bytes, str]:
    name = _one(header, random)
    header[name]["dtype"] = random.choice((*ODD_DTYPES, 5, None))
    return encode(header, blob), f"{name} has dtype {header[name]['dtype']}"


def _offsets(header: Header, blob: bytes, _: bytes, random: Random) -> tuple[bytes, str]:
    name, other = _one(header, random), _one(header, random)
    start, end = header[name]["data_offsets"]
    offsets: tuple[Any, ...] = (
        header[other]["data_offsets"],
        [start + 4, end + 4],
        [start, end + 4],
        [start - 4, end - 4],
        [end, start],
        [start, 2**63],
        [-4, end],
        [str(start), str(end)],
        [float(start), float(end)],
        [start],
        None,
        [len(blob), len(blob) + end - start],
    )
    header[name]["data_offsets"] = random.choice(offsets)
    return encode(header, blob), f"{name} at {header[name]['data_offsets']}, not {[start, end]}"


def _value(header: Header, blob: bytes, _: bytes, random: Random) -> tuple[bytes, str]:
    changed, said = mutate_value(header, random)
    return encode(changed, blob), f"header {said}"


def _convert(_: Header, blob: bytes, content: bytes, random: Random) -> tuple[bytes, str]:
    tensors = _tensors(content)
    dtype = random.choice(REAL_DTYPES)
    names = [*tensors] if random.random() < 0.5 else [random.choice([*tensors])]
    tensors |= {name: tensors[name].to(dtype) for name in names}
    return save(tensors, {"format": "pt"}), f"{len(names)} tensors as {dtype}"


def _resize(_: Header, blob: bytes, content: bytes, random: Random) -> tuple[bytes, str]:
    tensors = _tensors(content)
    name = random.choice([*tensors])
    tensor = tensors[name]
    variants: tuple[Callable[[], Any], ...] = (
        lambda: tensor[: len(tensor) // 2],
        lambda: torch.cat([tensor, tensor[:1]]),
        lambda: tensor[..., : tensor.shape[-1] // 2],
        lambda: tensor[:1],
        lambda: tensor.T,
        lambda: tensor[None],
        lambda: tensor.flatten()[:1].reshape(()),
        lambda: tensor[:0],
    )
    tensors[name] = random.choice(variants)().contiguous()
    return save(tensors, {"format": "pt"}), f"{name} has shape {list(tensors[name].shape)}"


def _stray(_: Header, blob: bytes, content: bytes, random: Random) -> tuple[bytes, str]:
    tensors = _tensors(content)
    name = random.choice(
        (
            "extra",
            "lm_head.weight",
            "lm_head.bias",
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.layers.2.mlp.up_proj.weight",
            "medusa_head.0.weight",
            "model.layers.0.mlp.up_proj.weight_scale",
            "model.layers.0.mlp.up_proj.qweight",
        )
    )
    like = random.choice([*tensors.values()])
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    tensors[name] = torch.randn(like.shape, generator=generator)
    return save(tensors, {"format": "pt"}), f"{name} of shape {list(like.shape)} is added"


def _numbers(_: Header, blob: bytes, content: bytes, random: Random) -> tuple[bytes, str]:
    tensors = _tensors(content)
    name = random.choice([*tensors])
    number = random.choice(ODD_NUMBERS)
    flat = tensors[name].flatten()
    part = slice(0, random.choice((1, len(flat))))
    flat[part] = number
    tensors[name] = flat.reshape(tensors[name].shape)
    return save(tensors, {"format": "pt"}), f"{name} has {number} in {part}"


def _length(_: Header, blob: bytes, content: bytes, random: Random) -> tuple[bytes, str]:
    size = random.choice((0, 1, 2**20, 2**40, 2**63, 2**64 - 1, len(content)))
    return struct.pack("<Q", size) + content[8:], f"header of {size} bytes"


def _swap_values(header: Header, blob: bytes, _: bytes, random: Random) -> tuple[bytes, str]:
    """Lets a tensor lie in the bytes of another one of the same size, and the other one in its."""
    name = _one(header, random)
    alike = [
        other
        for other, entry in header.items()
        if other != "__metadata__" and entry["shape"] == header[name]["shape"]
    ]
    other = random.choice(alike)
    header = copy.deepcopy(header)
    first, second = header[name]["data_offsets"], header[other]["data_offsets"]
    header[name]["data_offsets"], header[other]["data_offsets"] = second, first
    return encode(header, blob), f"{name} and {other} change bytes"


CHANGES = (
    _rename,
    _rename,
    _drop,
    _double,
    _shape,
    _dtype,
    _offsets,
    _value,
    _convert,
    _resize,
    _stray,
    _numbers,
    _length,
    _swap_values,
)
