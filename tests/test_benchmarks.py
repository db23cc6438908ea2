"""Every number in results/ has a maker in this repository, and every maker a result."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
NO_MEASUREMENTS = {"frame", "tables", "traces"}
"""What scripts share; tables made of results; texts recorded for the simulation."""

SCRIPTS = sorted({path.stem for path in BENCHMARKS.glob("*.py")} - NO_MEASUREMENTS)
NOT_YET_MEASURED = {"acceptance", "cpu_kernels"}
"""Scripts without a result. A script that gets one leaves this set; no other may join it."""

IN_COMMAND = re.compile(r"--output\s+results/([\w-]+)\.json")


def made_by(script: str) -> set[str]:
    """Returns the names of the results that the commands in a script's docstring make."""
    code = (BENCHMARKS / f"{script}.py").read_text("utf-8")
    return set(IN_COMMAND.findall(code.split('"""')[1]))


def results() -> set[str]:
    return {path.stem for path in (ROOT / "results").glob("*.json")}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_measures_has_its_results(script: str) -> None:
    assert made_by(script), "the docstring shows no command with --output results/NAME.json"
    missing = made_by(script) - results()
    assert bool(missing) == (script in NOT_YET_MEASURED), missing


def test_every_result_has_a_maker() -> None:
    recipes = {path.stem for path in (ROOT / "recipes" / "bench").glob("*.toml")}
    assert results() <= recipes.union(*map(made_by, SCRIPTS))


@pytest.mark.parametrize("script", [*SCRIPTS, "traces"])
def test_a_script_can_be_imported(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = runpy.run_path(str(BENCHMARKS / f"{script}.py"), run_name="imported")
    sys.modules.pop("frame", None)
    assert callable(names["main" if script == "traces" else "measure"])
