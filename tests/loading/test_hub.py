from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from treesnake.errors import LoadError
from treesnake.loading import hub
from treesnake.loading.checkpoint import find_checkpoint, tokenizer_beside
from treesnake.loading.hub import fetch_gguf, fetch_model


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(hub, "snapshot_download", Mock(side_effect=error))


def test_a_model_in_the_hubs_cache_is_found_without_a_connection(
    tiny_llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    stored = tmp_path / "hub" / "models--who--tiny"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(commit)
    (stored / "snapshots").mkdir()
    tiny_llama_folder.rename(stored / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = find_checkpoint("who/tiny")
    assert found.name == "who/tiny"
    assert found.path == stored / "snapshots" / commit


def test_the_tokenizer_of_a_model_in_the_hubs_cache_is_found_without_fetching(
    tiny_llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = find_checkpoint(str(tiny_llama_folder)).config
    stored = tmp_path / "hub" / "models--who--tiny"
    (stored / "snapshots").mkdir(parents=True)
    tiny_llama_folder.rename(stored / "snapshots" / ("1" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    fail_with(monkeypatch, AssertionError("nothing is fetched"))
    config._commit_hash = "1" * 40
    found = tokenizer_beside("who/tiny", config)
    assert found is not None
    assert found.decode(found("the hell 12").input_ids) == "the hell 12"
    for name in ("who/other", "no name: at all", ""):
        assert tokenizer_beside(name, config) is None


def test_a_model_that_is_not_in_the_cache_is_refused_without_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LoadError, match=r"who/tiny could not be fetched: .* cannot be reached"):
        find_checkpoint("who/tiny")


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (GatedRepoError, "accept its terms"),
        (RepositoryNotFoundError, "no such model at the hub"),
        (RevisionNotFoundError, "not that revision"),
    ],
)
def test_what_the_hub_answers_becomes_advice(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], advice: str
) -> None:
    fail_with(monkeypatch, kind("no", response=Mock(headers={})))
    with pytest.raises(LoadError, match=f"who/tiny at revision v2 could not be fetched.*{advice}"):
        fetch_model("who/tiny", revision="v2", with_code=False)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (HFValidationError("bad"), "neither a folder here nor a name"),
        (LocalEntryNotFoundError("offline"), "the hub cannot be reached"),
        (OSError("No space left on device"), "OSError: No space left on device"),
    ],
)
def test_what_goes_wrong_here_becomes_advice(
    monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    fail_with(monkeypatch, error)
    with pytest.raises(LoadError, match=advice):
        fetch_model("what is this", revision=None, with_code=False)


def test_code_is_fetched_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    download = Mock(return_value="/model")
    monkeypatch.setattr(hub, "snapshot_download", download)
    for with_code in (False, True):
        assert fetch_model("who/tiny", revision=None, with_code=with_code) == Path("/model")
        patterns = download.call_args.kwargs["allow_patterns"]
        assert ("*.py" in patterns) == with_code
        assert "*.bin" not in patterns


def test_pickled_weights_are_fetched_for_a_mamba_without_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = Mock(return_value=str(tmp_path))
    monkeypatch.setattr(hub, "snapshot_download", download)

    def is_pickle_fetched() -> bool:
        fetch_model("who/mamba", revision=None, with_code=False)
        return "pytorch_model.bin" in download.call_args.kwargs["allow_patterns"]

    (tmp_path / "config.json").write_text('{"d_model": 32, "n_layer": 1, "ssm_cfg": {}}')
    assert is_pickle_fetched()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert not is_pickle_fetched()
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    (tmp_path / "model.safetensors").touch()
    assert not is_pickle_fetched()


@pytest.mark.parametrize(
    ("file", "pattern"),
    [("q4/m.gguf", "q4/m.gguf"), ("m-00002-of-00003.gguf", "m-?????-of-00003.gguf")],
)
def test_a_gguf_file_is_fetched_alone_or_with_all_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, pattern: str
) -> None:
    download = Mock(return_value=str(tmp_path))
    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(LoadError, match=f"who/tiny at the hub has no file {file}"):
        fetch_gguf(f"who/tiny/{file}", revision="v2")
    download.assert_called_once_with("who/tiny", revision="v2", allow_patterns=[pattern])
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert fetch_gguf(f"who/tiny/{file}", revision=None) == tmp_path / file
