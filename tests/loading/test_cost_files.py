"""Measured costs are kept for what they were measured of, and for nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError
from treesnake.loading import cost_files
from treesnake.loading.cost_files import (
    CACHE_VARIABLE,
    CostKey,
    cache_folder,
    machine_name,
    read_costs,
    write_costs,
)
from treesnake.search.costs import CostTable

KEY = CostKey("target", "drafter", "int8", "native", "a processor", 2, "0.1", "sizes")
COSTS = CostTable({64: {1: 0.5, 2: 0.75}, 512: {1: 0.6, 2: 0.8}}, {64: {1: 0.1}})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TREESNAKE_CACHE", str(tmp_path))
    return tmp_path


def test_costs_are_read_as_they_were_written() -> None:
    assert read_costs(KEY) is None
    path = write_costs(KEY, COSTS)
    assert read_costs(KEY) == COSTS
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "change",
    [{"threads": 1}, {"dtype": "float32"}, {"drafter": "x"}, {"version": "0.2"}, {"configs": "y"}],
)
def test_other_keys_have_costs_of_their_own(change: dict[str, Any]) -> None:
    write_costs(KEY, COSTS)
    assert read_costs(replace(KEY, **change)) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40))
@example(content=b"")
@example(content=b"{}")
@example(content=b"[]")
@example(content=b'{"key": 1}')
@example(content=b'{"key": 1, "costs": {}}')
@example(content=b"\xff\xfe")
@example(content=b"[" * 100_000)
@example(content=b"9" * 5000)
def test_a_broken_file_is_told_and_is_no_file(
    content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    write_costs(KEY, COSTS).write_bytes(content)
    assert read_costs(KEY) is None
    assert "`treesnake calibrate` measures anew" in caplog.text


@pytest.mark.parametrize("seconds", ["-1", "0", "NaN", "Infinity", "1e999", '"x"', "null", "[]"])
def test_costs_that_make_no_sense_are_no_costs(seconds: str) -> None:
    path = write_costs(KEY, COSTS)
    path.write_text(path.read_text().replace("0.5", seconds))
    assert read_costs(KEY) is None


def test_costs_under_the_name_of_another_key_are_not_taken() -> None:
    other = replace(KEY, machine="another")
    write_costs(other, COSTS).rename(KEY.path)
    assert read_costs(KEY) is None


def test_a_folder_in_the_place_of_the_file_is_told(cache: Path) -> None:
    KEY.path.mkdir(parents=True)
    assert read_costs(KEY) is None
    with pytest.raises(InvalidInputError, match="set TREESNAKE_CACHE to a folder"):
        write_costs(KEY, COSTS)


def test_a_machine_goes_by_the_name_of_what_runs_the_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost_files, "processor_name", lambda: "a processor")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"a GPU at {device}")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert machine_name("cpu") == "a processor"
    assert machine_name("cuda:1") == "a GPU at cuda:1"
    assert machine_name("mps") == "mps arm64"


def test_the_cache_folder_is_the_users_or_the_one_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert cache_folder().name == "treesnake"
