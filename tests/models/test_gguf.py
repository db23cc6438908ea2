from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.errors import LoadError
from treesnake.models.gguf import GgufFile

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


def test_a_tensor_of_another_type_is_refused_when_it_is_read(
    tmp_path: Path, values: np.ndarray
) -> None:
    file = GgufFile(write_gguf(tmp_path / "a.gguf", {}, {"w": (values, "Q5_0")}))
    assert file.entries["w"].num_elements == values.size
    with pytest.raises(LoadError, match=r"w of .* has ggml type 6; only 0"):
        file["w"]


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


def test_a_missing_end_is_refused_when_its_tensor_is_read(
    tmp_path: Path, values: np.ndarray
) -> None:
    path = write_gguf(tmp_path / "a.gguf", {}, {"w": (values, "Q8_0")})
    path.write_bytes(path.read_bytes()[: -34 * 6])
    with pytest.raises(LoadError, match="cut off in the middle of w"):
        GgufFile(path)["w"]


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
