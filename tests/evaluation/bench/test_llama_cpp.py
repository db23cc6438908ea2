"""llama.cpp as a method of a benchmark: it gets the target's own tokens and file."""

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from treesnake import Prompt, SamplingParams
from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.bench_recipe import PairTable
from treesnake.evaluation.bench.llama_cpp import LlamaCppRunner
from treesnake.evaluation.bench.methods import Peer, parse_method
from treesnake.evaluation.bench.pair_loader import PairLoader


class FakeLlama:
    """Counts up from the last token of the prompt."""

    opened: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, path: str, **options: Any) -> None:
        self.opened.append({"path": path, **options})
        self.asked: dict[str, Any] = {}

    def n_ctx(self) -> int:
        return self.opened[-1]["n_ctx"]

    def reset(self) -> None:
        self.asked = {}

    def set_seed(self, seed: int) -> None:
        self.asked["seed"] = seed

    def generate(self, tokens: tuple[int, ...], **options: float) -> Iterator[int]:
        self.asked |= options
        token = tokens[-1]
        while True:
            token += 1
            yield token


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> type[FakeLlama]:
    module: Any = ModuleType("llama_cpp")
    module.__spec__ = ModuleSpec("llama_cpp", None)
    module.Llama = FakeLlama
    FakeLlama.opened = []
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    return FakeLlama


def run(runner: LlamaCppRunner, token: int, most: int) -> tuple[int, ...]:
    turn = runner.run(Prompt((1, token)), SamplingParams(), most, is_shown=False).turn
    assert turn.num_emissions == turn.num_new == len(turn.token_ids)
    assert turn.num_prompt == 2
    return turn.token_ids


@pytest.mark.usefixtures("llama")
def test_a_text_ends_at_an_end_token_or_at_its_length(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    runner = LlamaCppRunner(path, [7])
    assert run(runner, 3, 10) == (4, 5, 6, 7)
    assert run(runner, 3, 2) == (4, 5)


def test_the_model_is_opened_again_only_for_a_longer_text(
    llama: type[FakeLlama], tmp_path: Path
) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    runner = LlamaCppRunner(path, [])
    for length in (4, 8, 2000, 5):
        run(runner, 3, length)
    assert [options["n_ctx"] for options in llama.opened] == [1024, 2002]


def test_without_the_package_the_method_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("treesnake.evaluation.bench.llama_cpp.find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match="pip install llama-cpp-python"):
        LlamaCppRunner(tmp_path / "a.gguf", [])


def test_a_target_that_is_no_gguf_file_is_refused(tiny_folder: Path) -> None:
    loader = PairLoader(PairTable(str(tiny_folder), "none", device="cpu"), {})
    method = parse_method("llama.cpp")
    assert method.peer is Peer.LLAMA_CPP
    with pytest.raises(InvalidInputError, match="runs GGUF files"):
        loader.runner(method)
