"""Door: GGUF files, as targets and as drafters.

A file is taken apart into metadata and tensors, of which any may be changed, and put together
again: a writer that only writes what is right would be of no use here.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzzing import models
from fuzzing.cases import Case, Opened, RefusalError
from fuzzing.mutations import mutate_file
from treesnake.models.gguf import (
    ARRAY_KIND,
    DEFAULT_ALIGNMENT,
    MAGIC,
    NUMBER_FORMATS,
    STRING_KIND,
)
from treesnake.models.gguf_blocks import Q8_0

F32, F16 = 0, 1

Value = tuple[int, Any]
"""The number of a type, and what is of it; for a list a pair of the items' type and the items."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor: its sides from the fastest on, its type, its bytes, and where it says they are."""

    sides: tuple[int, ...]
    kind: int
    content: bytes
    offset: int | None = None


@dataclass
class GgufParts:
    """A whole file."""

    fields: list[tuple[str, Value]]
    tensors: list[tuple[str, GgufTensor]]
    version: int = 3
    num_tensors: int | None = None
    num_fields: int | None = None
    tail: bytes = field(default=b"")

    def encode(self) -> bytes:
        """Returns the bytes of the file."""
        count = len(self.tensors) if self.num_tensors is None else self.num_tensors
        num_fields = len(self.fields) if self.num_fields is None else self.num_fields
        header = MAGIC + struct.pack("<IQQ", self.version, count, num_fields)
        header += b"".join(_text(key) + _value(*value) for key, value in self.fields)
        blob = b""
        for name, tensor in self.tensors:
            offset = len(blob) if tensor.offset is None else tensor.offset
            header += _text(name) + struct.pack("<I", len(tensor.sides))
            header += b"".join(struct.pack("<Q", side % 2**64) for side in tensor.sides)
            header += struct.pack("<IQ", tensor.kind % 2**32, offset % 2**64)
            blob += _padded(tensor.content)
        return _padded(header) + blob + self.tail


class GgufFiles:
    """A Llama in float32, half precision and 8 bits."""

    specimens: Sequence[str] = tuple(
        f"{kind} as {role}" for kind in ("F32", "F16", "Q8_0") for role in ("target", "drafter")
    )

    def prepare(self, folder: Path) -> None:
        models.save_model("llama", folder / "target")

    def case(
        self, specimens: Path, specimen: str, work: Path, random: Random, num_mutations: int
    ) -> Case:
        kind, _, role = specimen.rpartition(" as ")
        files = work / "the-model"
        files.mkdir()
        path = files / "tiny.gguf"
        parts = _tiny_llama({"F32": F32, "F16": F16, "Q8_0": Q8_0}[kind])
        num_raw = sum(random.random() < 0.3 for _ in range(num_mutations))
        done = [_change(parts, random) for _ in range(num_mutations - num_raw)]
        path.write_bytes(parts.encode())
        done += [mutate_file(path, random, _nothing_structural) for _ in range(num_raw)]
        if role == "drafter":
            target = specimens / "target"
            open_it: Callable[[], Opened] = partial(models.generate, target, path)
            meant: Callable[[], Opened] = partial(models.reference, target)
        else:
            open_it = partial(models.generate, path)
            meant = partial(_reference, path, parts)
        return Case(specimen, tuple(done), files, open_it, meant, models.differ_in_text)


def _reference(path: Path, parts: GgufParts) -> Opened:
    """Returns what transformers says, which leaves out the scaling of positions.

    Raises:
        RefusalError: if the file has such a scaling.
    """
    if any(key.startswith("llama.rope.scaling") for key, _ in parts.fields):
        raise RefusalError("transformers leaves out the scaling of positions")
    return models.reference(path)


def _tiny_llama(kind: int) -> GgufParts:
    """Returns the tiny Llama as llama.cpp would have it."""
    model = models.build_model("llama")
    config = model.config
    sizes = {
        "general.architecture": "llama",
        "llama.block_count": config.num_hidden_layers,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    fields = [(key, _typed(value)) for key, value in (sizes | models.tokenizer_metadata()).items()]
    tensors = []
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp puts rotary pairs side by side
            heads = values.unflatten(0, (-1, 2, config.head_dim // 2))
            values = heads.transpose(1, 2).flatten(0, 2)
        array = np.ascontiguousarray(values.numpy())
        own_kind = kind if array.ndim == 2 else F32
        tensor = GgufTensor(array.shape[::-1], own_kind, _packed(array, own_kind))
        tensors.append((_gguf_name(name), tensor))
    return GgufParts(fields, tensors)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}


def _gguf_name(name: str) -> str:
    for ours, theirs in GGUF_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _packed(array: np.ndarray, kind: int) -> bytes:
    if kind == F32:
        return array.tobytes()
    if kind == F16:
        return array.astype(np.float16).tobytes()
    blocks = array.reshape(-1, 32)
    scales = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    safe = np.where(scales == 0, 1, scales).astype(np.float32)
    numbers = np.rint(blocks / safe).clip(-127, 127).astype(np.int8)
    return np.concatenate([scales.view(np.int8), numbers], axis=1).tobytes()


def _typed(value: Any) -> Value:
    if isinstance(value, list):
        kind = _typed(value[0])[0] if value else 4
        return ARRAY_KIND, (kind, value)
    kinds = {bool: 7, int: 4, float: 6, str: STRING_KIND}
    return kinds[type(value)], value


def _value(kind: int, value: Any) -> bytes:
    return struct.pack("<I", kind % 2**32) + _content(kind, value)


def _content(kind: int, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if kind == ARRAY_KIND:
        item_kind, items = value
        packed = b"".join(_content(item_kind, item) for item in items)
        return struct.pack("<IQ", item_kind, len(items)) + packed
    if kind == STRING_KIND:
        return _text(str(value))
    return struct.pack(f"<{NUMBER_FORMATS[kind]}", value)


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(content)) + content


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % DEFAULT_ALIGNMENT)


def _nothing_structural(content: bytes, random: Random) -> tuple[bytes, str]:
    """Flips a bit in the header, where its meaning is."""
    position = random.randrange(min(len(content), 12_000))
    flipped = bytes([content[position] ^ (1 << random.randrange(8))])
    return content[:position] + flipped + content[position + 1 :], f"a bit of byte {position}"


def _change(parts: GgufParts, random: Random) -> str:
    """Changes one thing of a file."""
    changes = (_change_field, _change_field, _change_field, _change_tensor, _change_tensor)
    return random.choice((*changes, _change_count))(parts, random)


ODD_FIELDS: tuple[tuple[str, Value], ...] = (
    ("general.alignment", (4, 0)),
    ("general.alignment", (4, 1)),
    ("general.alignment", (4, 64)),
    ("general.alignment", (4, 2**31)),
    ("general.alignment", (STRING_KIND, "32")),
    ("general.alignment", (6, float("nan"))),
    ("general.architecture", (STRING_KIND, "gemma")),
    ("general.architecture", (STRING_KIND, "mamba")),
    ("general.architecture", (4, 7)),
    ("llama.rope.scaling.type", (STRING_KIND, "linear")),
    ("llama.rope.scaling.type", (STRING_KIND, "yarn")),
    ("llama.rope.scaling.factor", (6, 4.0)),
    ("llama.rope.dimension_count", (4, 4)),
    ("llama.vocab_size", (4, 280)),
    ("llama.vocab_size", (4, 2**31)),
    ("llama.expert_count", (4, 8)),
    ("llama.attention.key_length", (4, 16)),
    ("llama.attention.sliding_window", (4, 4)),
    ("llama.attention.causal", (7, False)),
    ("llama.logit_scale", (6, 0.5)),
    ("tokenizer.ggml.add_bos_token", (7, True)),
    ("tokenizer.ggml.add_space_prefix", (7, True)),
    ("tokenizer.ggml.model", (STRING_KIND, "llama")),
    ("tokenizer.ggml.pre", (STRING_KIND, "llama-bpe")),
    ("tokenizer.ggml.eos_token_id", (4, 5)),
    ("tokenizer.ggml.eos_token_id", (4, 10**6)),
    ("tokenizer.ggml.eot_token_id", (4, 100)),
    ("tokenizer.chat_template", (STRING_KIND, "{% for x in range(10**9) %}a{% endfor %}")),
    ("tokenizer.chat_template", (STRING_KIND, "{{ 1 / 0 }}")),
    ("tokenizer.chat_template", (STRING_KIND, "{% if")),
    ("split.count", (2, 2)),
    ("a.list", (ARRAY_KIND, (ARRAY_KIND, [(4, [1, 2])]))),
    ("a.list", (ARRAY_KIND, (99, []))),
    ("a.list", (ARRAY_KIND, b"\x04\0\0\0" + b"\xff" * 8)),
    ("a.text", (STRING_KIND, b"\xff\xff\xff\xff\xff\xff\xff\x7f")),
    ("a.text", (STRING_KIND, b"\x02\0\0\0\0\0\0\0\xff\xfe")),
    ("nested", (ARRAY_KIND, struct.pack("<IQ", ARRAY_KIND, 1) * 10_000 + struct.pack("<IQ", 4, 0))),
    (
        "nested",
        (ARRAY_KIND, struct.pack("<IQ", ARRAY_KIND, 300_000) + struct.pack("<IQ", 4, 0) * 300_000),
    ),
)
NUMBERS = (0, 1, 2, 3, 5, 7, 16, 33, 2**16, 2**31, 2**32 - 1)


def _change_field(parts: GgufParts, random: Random) -> str:
    if random.random() < 0.45:
        key, value = random.choice(ODD_FIELDS)
        index = next((i for i, (name, _) in enumerate(parts.fields) if name == key), None)
        if index is None or random.random() < 0.1:
            parts.fields.append((key, value))
        else:
            parts.fields[index] = (key, value)
        return f"{key}: {str(value)[:40]}"
    index = random.randrange(len(parts.fields))
    key, (kind, value) = parts.fields[index]
    match random.randrange(5):
        case 0:
            del parts.fields[index]
            return f"{key}: dropped"
        case 1:
            parts.fields[index] = (
                key,
                random.choice(((STRING_KIND, "x"), (7, True), (6, 0.5), (5, -1))),
            )
        case 2 if kind == ARRAY_KIND and not isinstance(value, bytes):
            parts.fields[index] = (key, (ARRAY_KIND, _other_list(*value, random)))
        case 3:
            parts.fields[index] = (key, (random.choice((13, 255, 2**32 - 1)), b""))
        case _:
            parts.fields[index] = (key, (4, random.choice(NUMBERS)))
    return f"{key}: {str(value)[:20]} -> {str(parts.fields[index][1])[:40]}"


def _other_list(kind: int, items: Sequence[Any], random: Random) -> Any:
    lists: tuple[Any, ...] = (
        (kind, []),
        (kind, items[: len(items) // 2]),
        (kind, [*items, *items]),
        (kind, items[::-1]),
        (4, [1, 2, 3]),
        (STRING_KIND, ["a"]),
        (kind, [items[0]] * len(items)) if items else (kind, []),
    )
    return random.choice(lists)


def _change_tensor(parts: GgufParts, random: Random) -> str:
    if not parts.tensors:
        return "no tensor is left"
    index = random.randrange(len(parts.tensors))
    name, tensor = parts.tensors[index]
    sides = tensor.sides
    other, other_tensor = random.choice(parts.tensors)
    replacements: tuple[tuple[str, GgufTensor | None], ...] = (
        (name, None),
        ("odd", tensor),
        (other, tensor),
        (name.replace("weight", "bias"), tensor),
        (name, replace(tensor, sides=sides[::-1])),
        (name, replace(tensor, sides=(sides[0] * 2, *sides[1:]))),
        (name, replace(tensor, sides=(sides[0] - 1, *sides[1:]))),
        (name, replace(tensor, sides=(*sides[:-1], sides[-1] + 1))),
        (name, replace(tensor, sides=(*sides[:-1], sides[-1] // 2))),
        (name, replace(tensor, sides=(2**38, *sides[1:]))),
        (name, replace(tensor, sides=(2**63, 2**63))),
        (name, replace(tensor, sides=())),
        (name, replace(tensor, sides=(0,))),
        (name, replace(tensor, sides=(*sides, 1))),
        (name, replace(tensor, sides=(1,) * 200)),
        (name, replace(tensor, kind=random.choice((F32, F16, Q8_0, 2, 3, 6, 14, 24, 30, 39, 99)))),
        (name, replace(tensor, offset=random.choice((0, 1, 32, 2**40, 2**63)))),
        (name, replace(other_tensor)),
        (name, replace(tensor, content=tensor.content[: len(tensor.content) // 2])),
        (name, replace(tensor, content=_not_numbers(tensor))),
    )
    new_name, new = random.choice(replacements)
    if new is None:
        del parts.tensors[index]
        return f"{name}: dropped"
    parts.tensors[index] = (new_name, new)
    if random.random() < 0.1:
        parts.tensors.append((name, tensor))
    said = f"sides {new.sides[:4]}, type {new.kind}, offset {new.offset}, {len(new.content)} bytes"
    return f"{name}: {new_name}, {said}"


def _not_numbers(tensor: GgufTensor) -> bytes:
    return b"\xff\xff\xff\xff" + tensor.content[4:]


def _change_count(parts: GgufParts, random: Random) -> str:
    number = random.choice((0, 1, 100, 2**31, 2**40, 2**63))
    match random.randrange(4):
        case 0:
            parts.num_tensors = number
            return f"count of tensors: {number}"
        case 1:
            parts.num_fields = number
            return f"count of fields: {number}"
        case 2:
            parts.version = random.choice((0, 1, 2, 4, 3 << 24))
            return f"version: {parts.version}"
        case _:
            parts.tail = random.randbytes(random.choice((1, 31, 4096)))
            return f"tail: {len(parts.tail)} bytes"
