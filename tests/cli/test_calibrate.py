"""`treesnake calibrate`: what it shows, and that searches find what it kept."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from treesnake.cli.app import app
from treesnake.drafters.none import NoDrafterModel
from treesnake.loading.cost_files import CostKey, read_costs
from treesnake.pairs import Pair
from treesnake.search.costs import CostTable
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import TableModel, TinyNetwork

RUNNER = CliRunner()
KEY = CostKey("smollm2", "prompt-lookup", "int8", "native", "a processor", 2, "0.1", "sizes")
MODEL = NetworkTargetModel(TinyNetwork(TableModel(2)))
COSTS = CostTable({64: {1: 0.0125, 8: 0.02}, 512: {1: 0.015, 8: 0.025}}, {64: {1: 0.002}})


@dataclass
class Loaded:
    """What is used of a loaded network."""

    @property
    def checkpoint(self) -> "Loaded":
        return self

    @property
    def tokenizer(self) -> "Loaded":
        return self

    def encode(self, text: str) -> list[int]:
        return [len(text)]


def returning(value: object) -> Callable[..., object]:
    def stub(*_: object, **__: object) -> object:
        return value

    return stub


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREESNAKE_CACHE", str(tmp_path))
    for name, value in (
        ("targets.load.load_target", (MODEL, Loaded())),
        ("pairs.pair_by_name", Pair(MODEL, NoDrafterModel())),
        ("calibration.measure_costs", COSTS),
    ):
        monkeypatch.setattr(f"treesnake.{name}", returning(value))
    monkeypatch.setattr(CostKey, "of", returning(KEY))


def test_costs_are_shown_as_tables_and_kept_for_searches() -> None:
    result = RUNNER.invoke(app, ["calibrate"])
    assert result.exit_code == 0
    assert "12.50" in result.output
    assert "ms at 512 tokens" in result.output
    assert read_costs(KEY) == COSTS


def test_json_says_what_was_measured_of_what() -> None:
    result = json.loads(RUNNER.invoke(app, ["calibrate", "--json", "-d", "prompt-lookup"]).output)
    assert result["costs"]["score_s"]["64"]["8"] == 0.02
    assert result["key"]["target"] == "smollm2"
