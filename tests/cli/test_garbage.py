import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from treesnake.cli.garbage import collect_again, put_off_collection


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_a_command_that_starts_looks_for_no_garbage() -> None:
    put_off_collection()
    assert not gc.isenabled()


def test_garbage_is_looked_for_again_once_imports_are_done() -> None:
    put_off_collection()
    collect_again()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_triton_has_nothing_to_report_at_the_end() -> None:
    pytest.importorskip("triton")
    program = (
        "from treesnake.cli.garbage import collect_again, put_off_collection\n"
        "put_off_collection()\n"
        "import triton._C.libtriton\n"
        "collect_again()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert ended.stderr == b""
