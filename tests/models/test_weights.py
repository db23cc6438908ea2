import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from treesnake.errors import LoadError
from treesnake.models.weights import (
    INDEX_FILE,
    SINGLE_FILE,
    exact_dtype,
    open_weights,
    read_blocks,
    read_header,
)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 6, generator=generator)
    return {
        "float32": values,
        "float16": values.half(),
        "bfloat16": values.bfloat16(),
        "float8": values.to(torch.float8_e4m3fn),
        "int64": torch.arange(5),
        "bool": values > 0,
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
    }


@pytest.fixture
def sharded(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    first = ["float32", "int64"]
    shards = {
        "model-00001-of-00002.safetensors": first,
        "model-00002-of-00002.safetensors": [name for name in tensors if name not in first],
    }
    for shard, names in shards.items():
        save_file({name: tensors[name] for name in names}, tmp_path / shard)
    files = {name: shard for shard, names in shards.items() for name in names}
    (tmp_path / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return tmp_path


def test_every_tensor_is_read_bit_for_bit(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    weights = open_weights(tmp_path)
    assert set(weights) == set(tensors)
    for name, tensor in tensors.items():
        read = weights[name]
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert torch.equal(read.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("num_rows", [1, 3, 4, 9])
@pytest.mark.parametrize("name", ["float32", "float16", "int64", "empty"])
def test_blocks_of_rows_are_the_tensor(
    sharded: Path, tensors: dict[str, torch.Tensor], name: str, num_rows: int
) -> None:
    for mapping in (open_weights(sharded), tensors):
        blocks = list(read_blocks(mapping, name, num_rows))
        assert all(len(block) <= num_rows for block in blocks)
        assert torch.equal(torch.cat([tensors[name][:0], *blocks]), tensors[name])


def test_shards_are_read_as_one(sharded: Path, tensors: dict[str, torch.Tensor]) -> None:
    weights = open_weights(sharded)
    assert set(weights) == set(tensors)
    assert torch.equal(weights["float32"], tensors["float32"])
    assert torch.equal(weights["bool"], tensors["bool"])


def test_asking_whether_a_tensor_is_there_reads_none(sharded: Path) -> None:
    weights = open_weights(sharded)
    for shard in sharded.glob("*.safetensors"):
        shard.unlink()
    assert "float32" in weights
    assert "float64" not in weights
    assert len(weights) == 8


def test_sizes_count_floats_in_the_wanted_dtype_and_integers_as_stored(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5), "b": torch.arange(7)}, tmp_path / SINGLE_FILE)
    weights = open_weights(tmp_path)
    assert weights.num_bytes == 3 * 5 * 4 + 7 * 8
    assert weights.num_bytes_as(torch.float16) == 3 * 5 * 2 + 7 * 8


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"neither model\.safetensors nor"):
        open_weights(tmp_path)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / SINGLE_FILE
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LoadError, match=r"is cut off: its header promises \d+ bytes"):
        open_weights(tmp_path)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / SINGLE_FILE).write_bytes(b"a text that somebody put here\n" * 3)
    with pytest.raises(LoadError, match="is no safetensors file"):
        open_weights(tmp_path)


def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / SINGLE_FILE
    save_file({"a": torch.zeros(100)}, path)
    weights = open_weights(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LoadError, match="in the middle of a"):
        weights["a"]


def test_missing_shards_are_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(LoadError, match=r"lacks 1 of 2 shards: model-00002-of-00002"):
        open_weights(sharded)


def test_an_index_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "secret.safetensors")
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(LoadError, match="lacks 1 of 1 shards"):
        open_weights(inside)


def test_an_index_that_promises_more_than_its_shards_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_FILE).read_text())
    index["weight_map"]["lost"] = "model-00001-of-00002.safetensors"
    (sharded / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(LoadError, match="1 tensors that no shard holds, lost first"):
        open_weights(sharded)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(LoadError, match="no index of shards"):
        open_weights(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": {"a": "x", "a": "y"}}'])
def test_an_index_is_one_json_object(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(LoadError, match="is no JSON object"):
        open_weights(tmp_path)


def test_shards_without_an_index_are_told(sharded: Path) -> None:
    (sharded / INDEX_FILE).unlink()
    with pytest.raises(LoadError, match=r"such as model-00001-of-00002\.safetensors: fetch their"):
        open_weights(sharded)


@pytest.mark.parametrize(
    ("stored", "asked", "exact"),
    [
        ([torch.float16], torch.float32, torch.float16),
        ([torch.bfloat16, torch.bfloat16], torch.float32, torch.bfloat16),
        ([torch.bfloat16, torch.float16], torch.float32, torch.float32),
        ([torch.float16, torch.float32], torch.float32, torch.float32),
        ([torch.bfloat16], torch.float16, torch.float16),
        ([torch.float16], torch.int8, torch.int8),
    ],
)
def test_float32_matrices_are_left_in_half_precision_if_all_are_of_one(
    tmp_path: Path, stored: list[torch.dtype], asked: torch.dtype, exact: torch.dtype
) -> None:
    tensors = {str(place): torch.ones(2, 2, dtype=dtype) for place, dtype in enumerate(stored)}
    tensors["norm"] = torch.ones(2)
    save_file(tensors, tmp_path / SINGLE_FILE)
    assert exact_dtype(tensors, asked) == exact
    assert exact_dtype(open_weights(tmp_path), asked) == exact


@given(header=st.binary(max_size=60), data=st.binary(max_size=20))
@example(header=b"{}", data=b"")
def test_random_bytes_never_raise_anything_but_a_load_error(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("random") / SINGLE_FILE
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    with suppress(LoadError):
        assert not any(entry.num_bytes > len(data) for entry in read_header(path).values())


@pytest.mark.parametrize(
    "field",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]},
        {"dtype": 4, "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4]},
        3,
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, field: object) -> None:
    path = tmp_path / SINGLE_FILE
    header = json.dumps({"a": field}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(LoadError, match="broken safetensors header"):
        read_header(path)


def write_file(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def field(begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"a": field(0, 8), "b": field(4, 12)}, "b overlaps"),
        ({"a": field(0, 8), "b": field(0, 8)}, "b overlaps"),
        ({"a": field(0, 4), "b": field(8, 12)}, "b leaves a gap"),
        ({"a": field(4, 12)}, "a leaves a gap"),
        ({"a": field(0, 8)}, "4 bytes behind its last tensor"),
    ],
)
def test_every_byte_belongs_to_one_tensor(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    write_file(tmp_path / SINGLE_FILE, json.dumps(fields).encode(), bytes(12))
    with pytest.raises(LoadError, match=message):
        open_weights(tmp_path)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, sharded: Path) -> None:
    one = json.dumps(field(0, 4))
    write_file(tmp_path / "twice", f'{{"a": {one}, "a": {one}}}'.encode(), bytes(4))
    with pytest.raises(LoadError, match="a twice"):
        read_header(tmp_path / "twice")
    save_file({"float32": torch.zeros(2)}, sharded / "more.safetensors")
    index = json.loads((sharded / INDEX_FILE).read_text())
    index["weight_map"]["other"] = "more.safetensors"
    (sharded / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(LoadError, match="float32 in two of its shards"):
        open_weights(sharded)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint64, torch.float8_e8m0fnu])
def test_tensors_of_rare_dtypes_do_not_keep_others_from_being_read(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    save_file({"a": torch.ones(2), "rare": torch.zeros(4, dtype=dtype)}, tmp_path / SINGLE_FILE)
    assert open_weights(tmp_path)["rare"].dtype == dtype
    fields = {"a": field(0, 8), "rare": field(8, 12, dtype="F4")}
    write_file(tmp_path / SINGLE_FILE, json.dumps(fields).encode(), torch.ones(3).numpy().tobytes())
    weights = open_weights(tmp_path)
    assert torch.equal(weights["a"], torch.ones(2))
    assert weights["rare"].dtype == torch.uint8


def test_headers_and_indices_without_an_end_are_refused(tmp_path: Path) -> None:
    deep = b'{"a":' + b"[" * 100_000
    write_file(tmp_path / SINGLE_FILE, deep, b"")
    with pytest.raises(LoadError, match="broken safetensors header"):
        open_weights(tmp_path)
    (tmp_path / INDEX_FILE).write_bytes(deep)
    with pytest.raises(LoadError, match="nested more than"):
        open_weights(tmp_path)
