"""What is done to bytes, to JSON and to files, whatever they mean.

A mutation changes something and returns in a few words what it did. All choices are those of a
generator that is handed in, so the same seed makes the same input in every process.
"""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

DEEP = 100_000
"""Levels of nesting that no reader by recursion survives."""


class Raw(str):
    """Text that goes into JSON or TOML as it is."""


ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    7,
    1.5,
    -0.0,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    2**31,
    2**38,
    2**63,
    10**7,
    10**12,
    10**400,
    "",
    "0",
    "2",
    "inf",
    "float64",
    "\u2028 \u0085 \ufeff \x00",
    "../../outside",
    "[/b][red]{{ 7 * 7 }}",
    "\ud800",
    "x" * 100_000,
    [],
    [[]],
    [None],
    [0, 1],
    ["a", "b"],
    [[2]],
    {},
    {"a": 1},
    {"role": "user", "content": "hi"},
    Raw("[" * DEEP + "]" * DEEP),
    Raw('{"a":' * DEEP + "0" + "}" * DEEP),
)
ODD_NAMES = ("", "a", "model_type", "..", "\u2028", "\x00", "x" * 1000, "quantization_config")
ENCODINGS = ("utf-16", "utf-8-sig", "latin-1", "utf-32")


def mutate_bytes(content: bytes, random: Random) -> tuple[bytes, str]:
    """Flips, cuts, doubles, inserts or zeroes some bytes."""
    if not content:
        return random.randbytes(16), "16 bytes"
    size = len(content)
    start = random.randrange(size)
    # Headers are where the meaning is, so half of all changes are made near the beginning.
    start = start if random.random() < 0.5 else min(start, random.randrange(256))
    length = min(random.choice((1, 1, 2, 4, 8, 64, 1024)), size - start)
    end = start + length
    match random.randrange(6):
        case 0:
            bit = 1 << random.randrange(8)
            flipped = bytes([content[start] ^ bit])
            return content[:start] + flipped + content[start + 1 :], f"bit {bit} of byte {start}"
        case 1:
            return content[:start], f"cut at {start}"
        case 2:
            return content[:start] + content[end:], f"without {length} bytes at {start}"
        case 3:
            return content[:end] + content[start:], f"{length} bytes at {start} twice"
        case 4:
            noise = random.randbytes(length)
            return content[:start] + noise + content[start:], f"{length} more bytes at {start}"
        case _:
            value = random.choice((0x00, 0xFF, 0x80, 0x0A))
            filled = bytes([value]) * length
            return content[:start] + filled + content[end:], f"{length} times {value} at {start}"


def mutate_text(content: bytes, random: Random) -> tuple[bytes, str]:
    """Writes text in another encoding, with other line ends, twice, or with an odd character."""
    match random.randrange(5):
        case 0:
            encoding = random.choice(ENCODINGS)
            text = content.decode("utf-8", "replace")
            return text.encode(encoding, "replace"), f"in {encoding}"
        case 1:
            return content.replace(b"\n", b"\r\n"), "with \\r\\n"
        case 2:
            return content + content, "twice"
        case 3:
            position = random.randrange(len(content) + 1)
            odd = random.choice((b"\xff", b"\xed\xa0\x80", b"\x00", "\u2028".encode(), b"\xc2\x85"))
            return content[:position] + odd + content[position:], f"{odd!r} at {position}"
        case _:
            return content.rstrip() + b"," + b"\n" * 3, "a comma at the end"


def mutate_value(value: Any, random: Random) -> tuple[Any, str]:
    """Changes one place of plain data; returns the changed copy."""
    root = [copy.deepcopy(value)]
    parent: Any = root
    key: Any = 0
    steps: list[str] = []
    while _has_items(parent[key]) and random.random() < (0.9 if len(steps) < 2 else 0.6):
        parent = parent[key]
        key = random.choice([*parent] if isinstance(parent, dict) else range(len(parent)))
        steps.append(str(key))
    place = ".".join(steps) or "all of it"
    said = _change(parent, key, random)
    return root[0], f"{place}: {said}"


def to_json(value: Any) -> bytes:
    """Writes plain data as JSON, and raw text in it as it is."""
    raws: list[Raw] = []

    def mark(part: Any) -> Any:
        if isinstance(part, Raw):
            raws.append(part)
            return f"\x01{len(raws) - 1}\x01"
        if isinstance(part, dict):
            return {str(name): mark(item) for name, item in part.items()}
        return [mark(item) for item in part] if isinstance(part, list | tuple) else part

    text = json.dumps(mark(value), indent=1)
    for index, raw in enumerate(raws):
        text = text.replace(f'"\\u0001{index}\\u0001"', raw)
    return text.encode("utf-8", "surrogatepass")


def mutate_json(content: bytes, random: Random) -> tuple[bytes, str]:
    """Changes one value of a JSON file, or gives one key twice."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # it was mutated before
        return mutate_bytes(content, random)
    if isinstance(value, dict) and value and random.random() < 0.05:
        key, odd = random.choice([*value]), random.choice(ODD_VALUES)
        text = to_json({key: odd})[1:-1].strip() + b","
        return b"{" + text + content.lstrip()[1:], f"{key} twice, first as {_shown(odd)}"
    changed, said = mutate_value(value, random)
    return to_json(changed), said


def mutate_file(
    path: Path, random: Random, structural: Callable[[bytes, Random], tuple[bytes, str]]
) -> str:
    """Changes one file of an input; returns what was done to which file."""
    chance = random.random()
    if not path.is_file():
        return f"{path.name}: nothing, it is no file any more"
    if chance < 0.06:
        return f"{path.name}: {_replace_file(path, random)}"
    if chance < 0.2:
        content, said = mutate_bytes(path.read_bytes(), random)
    elif chance < 0.28:
        content, said = mutate_text(path.read_bytes(), random)
    else:
        content, said = structural(path.read_bytes(), random)
    path.write_bytes(content)
    return f"{path.name}: {said}"


def _replace_file(path: Path, random: Random) -> str:
    """Puts something else where a file was."""
    content = path.read_bytes()
    path.unlink()
    match random.randrange(6):
        case 0:
            return "missing"
        case 1:
            path.touch()
            return "empty"
        case 2:
            path.mkdir()
            return "a folder"
        case 3:
            path.symlink_to(path.name)
            return "a link to itself"
        case 4:
            path.symlink_to("nowhere")
            return "a link to nowhere"
        case _:
            shutil.copytree(path.parent, path.with_name("copy"), symlinks=True, dirs_exist_ok=True)
            path.write_bytes(content)
            return "a copy of all files beside it"


def _change(parent: Any, key: Any, random: Random) -> str:
    """Changes what a key of a dict or list holds."""
    value = parent[key]
    match random.randrange(8):
        case 0 if len(parent) > 1 or isinstance(parent, dict):
            del parent[key]
            return "dropped"
        case 1 if isinstance(parent, dict):
            name = random.choice(ODD_NAMES)
            parent[name] = parent.pop(key)
            return f"renamed to {name[:20]!r}"
        case 2 if isinstance(parent, dict):
            other = random.choice([*parent])
            parent[key] = copy.deepcopy(parent[other])
            return f"that of {other}"
        case 3:
            parent[key] = random.choice(([value], {"value": value}, str(value)))
            return f"wrapped as {_shown(parent[key])}"
        case 4 | 5 if isinstance(value, int | float) and not isinstance(value, bool):
            parent[key] = _other_number(value, random)
            return f"{value} -> {_shown(parent[key])}"
        case _:
            parent[key] = copy.deepcopy(random.choice(ODD_VALUES))
            return f"-> {_shown(parent[key])}"


def _other_number(value: float, random: Random) -> Any:
    changes: tuple[Callable[[float], Any], ...] = (
        lambda n: n + 1,
        lambda n: n - 1,
        lambda n: n * 2,
        lambda n: n // 2,
        lambda n: -n,
        lambda n: n * 10**6,
        float,
        str,
    )
    return random.choice(changes)(value)


def _has_items(value: Any) -> bool:
    return isinstance(value, dict | list) and bool(value)


def _shown(value: Any) -> str:
    text = ascii(value) if not isinstance(value, int) or abs(value) < 2**64 else "10**400"
    return text if len(text) <= 40 else f"{text[:36]}..."
