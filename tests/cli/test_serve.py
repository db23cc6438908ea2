"""The command that serves, as a shell runs it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from treesnake.cli import serve
from treesnake.errors import InvalidInputError, LoadError
from treesnake.serving.server import listen
from treesnake.testing.llama_folder import write_llama

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
COMMAND = [sys.executable, "-m", "treesnake", "serve"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_llama(tmp_path)
    return tmp_path


def test_the_printed_address_answers_and_sigterm_ends_the_server(folder: Path) -> None:
    server = subprocess.Popen(
        [*COMMAND, str(folder), "--port", "0", "--drafter", "prompt-lookup",
         "--served-model-name", "mine"],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert server.stderr is not None
    found = None
    try:
        for line in server.stderr:
            if found := re.search(r"Serving mine at (http://127\.0\.0\.1:\d+)", line):
                break
        assert found
        models = httpx.get(f"{found[1]}/v1/models", timeout=60).json()
        assert models["data"][0]["id"] == "mine"
        server.send_signal(signal.SIGTERM)
        assert "Traceback" not in server.stderr.read()
        assert server.wait() in (0, -signal.SIGTERM)
    finally:
        server.kill()
        server.wait()


def test_an_address_that_cannot_be_had_is_told() -> None:
    with pytest.raises(InvalidInputError, match=r"203\.0\.113\.1:8000 cannot be listened at"):
        listen("203.0.113.1", 8000)


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "NEEDED", ("starlette", "no_such_package"))
    with pytest.raises(LoadError, match=r"no_such_package; install treesnake\[serve\]"):
        serve.serve()
