import math
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from treesnake.errors import LoadError
from treesnake.models.gguf import BLOCKS, GgufFile
from treesnake.testing.gguf_files import GgufTensor, gguf_bytes, nested_arrays

gguf = pytest.importorskip("gguf")


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[Any, str]]) -> Path:
    """Writes a file with ggml's own package; a tensor comes with the name of its ggml type."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        writer.add_key_value(key, *value)
    for name, (values, kind) in tensors.items():
        ggml_type = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, ggml_type), raw_dtype=ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)


def test_metadata_of_every_kind_is_read(tmp_path: Path) -> None:
    kinds = gguf.GGUFValueType
    metadata = {
        "text": ("snake \U0001f40d", kinds.STRING),
        "yes": (True, kinds.BOOL),
        "count": (2**40, kinds.UINT64),
        "offset": (-7, kinds.INT32),
        "ratio": (0.5, kinds.FLOAT32),
        "words": (["a", "bc", ""], kinds.ARRAY, kinds.STRING),
        "types": ([3, 1, -2], kinds.ARRAY, kinds.INT32),
    }
    read = GgufFile(write_gguf(tmp_path / "a.gguf", metadata, {})).metadata
    assert {key: read[key] for key in metadata} == {key: item[0] for key, item in metadata.items()}
    assert read["general.architecture"] == "llama"


@pytest.mark.parametrize("kind", ["F32", "Q4_1", "Q8_0"])
def test_tensors_have_the_bits_that_ggml_gives_them(
    tmp_path: Path, values: np.ndarray, kind: str
) -> None:
    ggml_type = gguf.GGMLQuantizationType[kind]
    tensors = {"before": (values[0], "F32"), "w": (values, kind), "after": (values[1], "F32")}
    file = GgufFile(write_gguf(tmp_path / "a.gguf", {}, tensors))
    expected = gguf.quants.dequantize(gguf.quants.quantize(values, ggml_type), ggml_type)
    assert list(file) == ["before", "w", "after"]
    assert torch.equal(file["w"], torch.from_numpy(expected))
    assert torch.equal(file["after"], torch.from_numpy(values[1]))


def test_sizes_are_those_of_unpacked_tensors(tmp_path: Path, values: np.ndarray) -> None:
    tensors = {"w": (values, "Q4_1"), "b": (values[0], "F32")}
    file = GgufFile(write_gguf(tmp_path / "a.gguf", {}, tensors))
    assert file.entries["w"].shape == (6, 96)
    assert file.num_bytes_as(torch.float16) == (6 * 96 + 96) * 2
    assert "w" in file
    assert "x" not in file
    assert len(file) == 2


@pytest.mark.parametrize("kind", ["IQ1_S", "IQ3_XXS", "TQ1_0"])
def test_codebooks_are_read_by_ggmls_own_package(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ggml_type = gguf.GGMLQuantizationType[kind]
    _, block_bytes = BLOCKS[ggml_type]
    raw = np.random.default_rng(0).integers(0, 60, (2, 3 * block_bytes), np.uint8)
    data = gguf_bytes([], [("w", GgufTensor((768, 2), int(ggml_type)))], raw.tobytes())
    (tmp_path / "a.gguf").write_bytes(data)
    file = GgufFile(tmp_path / "a.gguf")
    expected = torch.from_numpy(gguf.quants.dequantize(raw, ggml_type))
    assert torch.equal(file["w"], expected)
    rounded = file.tensors["w"].read_grouped("w")
    assert rounded.bits == 8
    assert np.abs(rounded.to_floats() - expected.numpy()).max() <= float(expected.abs().max()) / 100
    monkeypatch.setattr("treesnake.models.gguf.find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"w of .* has ggml type \d+, which needs the package gguf"):
        file["w"]


def test_a_format_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    tensors = [("w", GgufTensor((32, 1), 9))]
    (tmp_path / "a.gguf").write_bytes(gguf_bytes([], tensors, bytes(40)))
    with pytest.raises(LoadError, match="ggml type 9, which is not read here"):
        GgufFile(tmp_path / "a.gguf")["w"]


def test_rows_are_read_alone_and_in_another_order(tmp_path: Path, values: np.ndarray) -> None:
    file = GgufFile(write_gguf(tmp_path / "a.gguf", {}, {"w": (values, "Q8_0")}))
    assert torch.equal(file.rows("w", 2, 4), file["w"][2:4])
    assert torch.equal(file.rows("w", 5, 99), file["w"][5:])
    order = np.array([5, 0, 3, 1, 2, 4])
    reordered = replace(file.tensors["w"], order=order)
    assert torch.equal(reordered.read("w"), file["w"][order])
    assert torch.equal(reordered.rows(2, 4).read("w"), file["w"][[3, 1]])
    grouped = reordered.rows(2, 4).read_grouped("w").to_floats()
    assert torch.equal(torch.from_numpy(grouped), file["w"][[3, 1]])


def write_parts(
    folder: Path,
    values: np.ndarray,
    *,
    named: str = "m-{:05}-of-00002.gguf",
    names: tuple[str, str] = ("first", "second"),
    promised: int = 2,
) -> Path:
    """Writes a model in two parts, of which the first describes it; returns the second."""
    for number, name in enumerate(names):
        metadata: list[tuple[str, Any]] = [("split.no", number), ("split.count", 2)]
        if number == 0:
            metadata += [("general.name", "snake"), ("split.tensors.count", promised)]
        tensors = [(name, GgufTensor(values.shape[::-1]))]
        data = gguf_bytes(metadata, tensors, (values + number).tobytes())
        (folder / named.format(number + 1)).write_bytes(data)
    return folder / named.format(2)


@pytest.mark.parametrize("named", ["m-{:05}-of-00002.gguf", "M-{:05}-OF-00002.GGUF"])
def test_any_part_of_a_split_model_is_all_of_it(
    tmp_path: Path, values: np.ndarray, named: str
) -> None:
    file = GgufFile(write_parts(tmp_path, values, named=named))
    assert file.path.name == named.format(1)
    assert file.metadata["general.name"] == "snake"
    assert torch.equal(file["second"], file["first"] + 1)


def test_parts_that_are_missing_renamed_or_of_another_model_are_told(
    tmp_path: Path, values: np.ndarray
) -> None:
    second = write_parts(tmp_path, values)
    first = second.with_name("m-00001-of-00002.gguf")
    whole = first.read_bytes()
    first.unlink()
    with pytest.raises(LoadError, match=r"lacks 1 of 2 parts .* m-00001-of-00002\.gguf"):
        GgufFile(second)
    first.write_bytes(second.read_bytes())
    with pytest.raises(LoadError, match=r"says that it is part 1 .* against its"):
        GgufFile(second)
    first.write_bytes(whole)
    lone = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(LoadError, match=r"one of 2 parts .* give them their names"):
        GgufFile(lone)
    with pytest.raises(LoadError, match="holds 'same', and so does an earlier part"):
        GgufFile(write_parts(tmp_path, values, names=("same", "same")))
    with pytest.raises(LoadError, match="promises 3 tensors in its 2 parts, which hold 2"):
        GgufFile(write_parts(tmp_path, values, promised=3))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(LoadError, match="is no GGUF file"):
        GgufFile(path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", {}, {})
    content = bytearray(path.read_bytes())
    content[4] = 9
    path.write_bytes(content)
    with pytest.raises(LoadError, match="is GGUF version 9"):
        GgufFile(path)


def test_a_missing_end_is_found_before_anything_is_read(tmp_path: Path, values: np.ndarray) -> None:
    path = write_gguf(tmp_path / "a.gguf", {}, {"w": (values, "Q8_0")})
    path.write_bytes(path.read_bytes()[: -34 * 6])
    with pytest.raises(LoadError, match=r"'w' with the shape \[6, 96\] should end at byte"):
        GgufFile(path)


def test_a_file_that_is_cut_while_it_is_open_is_told(tmp_path: Path, values: np.ndarray) -> None:
    path = write_gguf(tmp_path / "a.gguf", {}, {"w": (values, "Q8_0")})
    file = GgufFile(path)
    path.write_bytes(path.read_bytes()[: -34 * 6])
    with pytest.raises(LoadError, match="cut off in the middle of w"):
        file["w"]


def test_block_sizes_are_ggmls() -> None:
    assert {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()} == BLOCKS


WHOLE = gguf_bytes(
    [("general.architecture", "llama"), ("words", ["a", "b"]), ("ids", [1, 2])],
    [("v", GgufTensor((8,))), ("w", GgufTensor((32, 2), 8, 32))],
    bytes(32 + 68),
)


def test_what_the_tests_write_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(WHOLE)
    file = GgufFile(path)
    assert file.metadata == {"general.architecture": "llama", "words": ["a", "b"], "ids": [1, 2]}
    assert file["w"].shape == (2, 32)
    assert torch.equal(file["v"], torch.zeros(8))


ONE = (("w", GgufTensor((8,))),)
SEVERAL_FAULTS = [
    (gguf_bytes([("general.alignment", 0)], ONE, bytes(32)), "alignment is 0, which is no power"),
    (gguf_bytes([("general.alignment", 24)], ONE, bytes(32)), "alignment is 24"),
    (gguf_bytes([("general.alignment", "32")], ONE, bytes(32)), "alignment is '32'"),
    (gguf_bytes([("general.alignment", math.nan)], ONE, bytes(32)), "alignment is nan"),
    (gguf_bytes([("a", nested_arrays(2))]), "'a' is an array of arrays"),
    (gguf_bytes([("a", nested_arrays(10**6))]), "'a' is an array of arrays"),
    (gguf_bytes([("a", 1), ("a", 1)]), "it holds 'a' twice"),
    (gguf_bytes((), ONE * 2, bytes(32)), "it holds 'w' twice"),
    (gguf_bytes((), [("w", GgufTensor((2**38,)))], bytes(32)), "should end at byte"),
    (gguf_bytes((), [("w", GgufTensor((2**63, 2**63)))], bytes(32)), "should end at byte"),
    (gguf_bytes((), [("w", GgufTensor((8,) * 5))], bytes(32)), "has 5 axes; 4 is the most"),
    (gguf_bytes((), [("w", GgufTensor((33, 2), 8))], bytes(99)), "rows of 33 values"),
    (gguf_bytes((), [("w", GgufTensor((8,), 99))], bytes(32)), "ggml type 99, which is not known"),
    (gguf_bytes((), [("w", GgufTensor((8,), 0, 4))], bytes(64)), "begins at byte 4, off 32"),
    (gguf_bytes((), [("w", GgufTensor((8,), 0, 2**40))], bytes(64)), "should end at byte"),
    (
        gguf_bytes((), [("v", GgufTensor((9,))), ("w", GgufTensor((8,), 0, 32))], bytes(64)),
        "'w' begins within 'v'",
    ),
    (gguf_bytes(version=0x03000000), "is big-endian"),
    (gguf_bytes([("a", struct.pack("<I", 77))]), "metadata of unknown kind 77"),
]


@pytest.mark.parametrize(("content", "reason"), SEVERAL_FAULTS)
def test_a_fault_in_a_header_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=re.escape(reason)):
        GgufFile(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4
    ),
    length=st.integers(0, len(WHOLE)),
)
def test_any_change_of_a_file_leaves_a_file_or_a_load_error(
    tmp_path: Path, changes: list[tuple[int, int]], length: int
) -> None:
    content = bytearray(WHOLE)
    for index, byte in changes:
        content[index] = byte
    path = tmp_path / "a.gguf"
    for each in (content, content[:length]):
        path.write_bytes(each)
        try:
            file = GgufFile(path)
            tensors = [file[name] for name in file]
        except LoadError:
            continue
        assert sum(tensor.numel() for tensor in tensors) <= 32 * len(WHOLE)


@given(data=st.data())
def test_a_broken_header_never_raises_anything_but_a_load_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    kinds = gguf.GGUFValueType
    metadata = {"words": (["a", "bc"], kinds.ARRAY, kinds.STRING), "n": (3, kinds.UINT32)}
    path = tmp_path_factory.mktemp("broken") / "a.gguf"
    content = write_gguf(path, metadata, {"w": (np.zeros((2, 32), np.float32), "F32")}).read_bytes()
    header = content[: content.index(b"w") + 1]
    path.write_bytes(header[: data.draw(st.integers(0, len(header) - 1))])
    with pytest.raises(LoadError):
        GgufFile(path)
