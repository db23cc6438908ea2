import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
)

from treesnake.errors import InvalidInputError, LoadError, TreesnakeError
from treesnake.loading import checkpoint as checkpoint_module
from treesnake.loading.checkpoint import (
    DEFAULT_MODEL,
    end_token_ids,
    find_checkpoint,
    locate,
)
from treesnake.loading.options import LoadOptions
from treesnake.loading.state_space import stored_dtype
from treesnake.models.transformer_config import TransformerConfig, unsupported_reason
from treesnake.models.weights import SINGLE_FILE

EditConfig = Callable[..., None]


def test_a_folder_gives_config_tokenizer_and_opened_weights(tiny_llama_folder: Path) -> None:
    found = find_checkpoint(str(tiny_llama_folder))
    assert found.name == str(tiny_llama_folder)
    assert found.path == tiny_llama_folder
    assert found.gguf_file is None
    assert found.config.model_type == "llama"
    assert found.tokenizer.decode(found.tokenizer("the hell 12").input_ids) == "the hell 12"
    assert found.generation_config.eos_token_id == 2
    assert found.weights["model.norm.weight"].shape == (64,)


def test_a_folder_without_generation_config_takes_it_from_its_config(
    tiny_llama_folder: Path,
) -> None:
    (tiny_llama_folder / "generation_config.json").unlink()
    assert find_checkpoint(str(tiny_llama_folder)).generation_config.eos_token_id == 2


def test_no_name_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no model is named; the default is 'smollm2'"):
        find_checkpoint("")


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "a/b/c", "missing.gguf"])
def test_a_path_that_is_not_there_is_not_looked_up_at_the_hub(name: str) -> None:
    with pytest.raises(LoadError, match="there is no file or folder"):
        find_checkpoint(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\0b", "is no name of a model"),
        ("half a pair \ud83d", "is no name of a model"),
        ("~nobody-of-that-name/model", "is no name of a model"),
        ("n" * 5000, "cannot be looked at"),
    ],
)
def test_what_can_be_no_name_is_refused(name: str, reason: str) -> None:
    with pytest.raises(TreesnakeError, match=reason):
        find_checkpoint(name)


def test_what_lies_there_is_named_for_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for path, reason in (
        (tmp_path / "fifo", "is a device, a pipe or a socket"),
        (Path("/dev/null"), "is a device, a pipe or a socket"),
        (tmp_path / "link", r"there is no file or folder .*link: it is a link to .*gone"),
    ):
        with pytest.raises(LoadError, match=reason):
            find_checkpoint(str(path))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(LoadError, match=r"model\.bin is a file; name the folder"):
        find_checkpoint(str(tmp_path / "model.bin"))


def test_a_revision_of_a_local_model_is_refused(tiny_llama_folder: Path) -> None:
    for name in (str(tiny_llama_folder), DEFAULT_MODEL):
        with pytest.raises(InvalidInputError, match="revision 'v1' is for models at the hub"):
            find_checkpoint(name, LoadOptions(revision="v1"))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has no config\.json; it holds nothing"):
        find_checkpoint(str(tmp_path))


def test_a_folder_with_one_gguf_file_stands_for_it(tmp_path: Path) -> None:
    for name in ("mmproj-F16.gguf", "M-00001-of-00002.GGUF", "M-00002-of-00002.GGUF", "README.md"):
        (tmp_path / name).touch()
    assert locate(str(tmp_path)) == tmp_path / "M-00001-of-00002.GGUF"
    (tmp_path / "m.gguf").touch()
    with pytest.raises(LoadError, match=r"holds 2 GGUF files \(M-0.*m\.gguf\); name one of them"):
        locate(str(tmp_path))
    (tmp_path / "config.json").touch()
    assert locate(str(tmp_path)) == tmp_path


def test_a_gguf_file_at_the_hub_is_named_by_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = Mock(return_value=Path("/cache/m.gguf"))
    monkeypatch.setattr(checkpoint_module, "fetch_gguf", fetch)
    options = LoadOptions(revision="v2")
    assert locate("who/tiny-GGUF/q4/m.gguf", options) == Path("/cache/m.gguf")
    fetch.assert_called_once_with("who/tiny-GGUF/q4/m.gguf", revision="v2")


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(LoadError, match="is an adapter; merge it"):
        find_checkpoint(str(tmp_path))


def test_pickled_weights_are_refused(tiny_llama_folder: Path) -> None:
    (tiny_llama_folder / SINGLE_FILE).unlink()
    torch.save({}, tiny_llama_folder / "pytorch_model.bin")
    with pytest.raises(LoadError, match=r"pickled \(pytorch_model\.bin\).* can run any code"):
        find_checkpoint(str(tiny_llama_folder))


def test_missing_weights_are_refused(tiny_llama_folder: Path) -> None:
    (tiny_llama_folder / SINGLE_FILE).unlink()
    with pytest.raises(LoadError, match=r"has no model\.safetensors, .* it holds .*config\.json"):
        find_checkpoint(str(tiny_llama_folder))


def test_cut_off_weights_are_found_before_they_are_loaded(tiny_llama_folder: Path) -> None:
    path = tiny_llama_folder / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LoadError, match="is cut off"):
        find_checkpoint(str(tiny_llama_folder))


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_config_is_refused(tiny_llama_folder: Path, text: str) -> None:
    (tiny_llama_folder / "config.json").write_text(text)
    with pytest.raises(LoadError, match=r"config\.json is no JSON object"):
        find_checkpoint(str(tiny_llama_folder))


def test_a_config_with_impossible_values_is_refused(
    tiny_llama_folder: Path, edit_config: EditConfig
) -> None:
    edit_config(tiny_llama_folder, hidden_size="wide")
    with pytest.raises(LoadError, match=r"config\.json has hidden_size = 'wide'"):
        find_checkpoint(str(tiny_llama_folder))


CONFIG_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([2**31, 2**63, 10**30]),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.lists(st.integers(-1, 3), max_size=2),
    st.dictionaries(
        st.sampled_from(["rope_type", "factor", "rope_theta"]), st.integers(), max_size=2
    ),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(
        [
            *(
                "model_type",
                "eos_token_id",
                "hidden_act",
                "rope_parameters",
                "rope_scaling",
                "dtype",
            ),
            *("num_hidden_layers", "hidden_size", "rms_norm_eps", "attn_implementation"),
            *("text_config", "architectures", "auto_map", "tie_word_embeddings"),
        ]
    ),
    value=CONFIG_VALUES,
)
@example(key="model_type", value=[1])
@example(key="hidden_size", value=True)
@example(key="num_hidden_layers", value=-1)
@example(key="num_attention_heads", value=0)
@example(key="max_position_embeddings", value=64.0)
@example(key="attn_implementation", value="owner/kernel")
@example(key="sliding_window", value={"rope_type": "linear"})
@example(key="sliding_window", value=1.5)
@example(key="partial_rotary_factor", value="x")
@example(key="rope_scaling", value={"rope_type": ["a"]})
@example(key="rope_parameters", value={"rope_type": "linear", "factor": 0})
@example(key="text_config", value={})
@example(key="text_config", value=[1, 2])
def test_any_value_in_a_config_loads_or_is_refused(
    tiny_llama_folder: Path, key: str, value: object
) -> None:
    path = tiny_llama_folder / "config.json"
    written = path.read_text()
    path.write_text(json.dumps(json.loads(written) | {key: value}))
    try:
        with suppress(TreesnakeError):
            found = find_checkpoint(str(tiny_llama_folder))
            end_token_ids(found)
            stored_dtype(found)
            if unsupported_reason(found.config) is None:
                TransformerConfig.from_hf(found.config)
    finally:
        path.write_text(written)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation_internal"])
def test_only_ways_to_attend_that_transformers_has_are_taken_from_a_config(
    tiny_llama_folder: Path, edit_config: EditConfig, key: str
) -> None:
    edit_config(tiny_llama_folder, **{key: "sdpa"})
    find_checkpoint(str(tiny_llama_folder))
    edit_config(tiny_llama_folder, **{key: "owner/kernel"})
    with pytest.raises(LoadError, match="code from elsewhere, which is never run"):
        find_checkpoint(str(tiny_llama_folder))


def test_an_unknown_model_type_is_refused(tiny_llama_folder: Path, edit_config: EditConfig) -> None:
    edit_config(tiny_llama_folder, model_type="hydra9000")
    with pytest.raises(LoadError, match="model type 'hydra9000', which this version of transf"):
        find_checkpoint(str(tiny_llama_folder))


def test_the_tokenizer_does_not_warn_of_a_text_whose_length_is_checked_later(
    tiny_llama_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = find_checkpoint(str(tiny_llama_folder)).tokenizer
    tokenizer.model_max_length = 2
    said = logging.getLogger("transformers.tokenization_utils_base")
    said.addHandler(caplog.handler)
    assert len(tokenizer.encode("the hell the hell")) > 2
    said.removeHandler(caplog.handler)
    assert not caplog.records


def test_a_missing_tokenizer_is_refused(tiny_llama_folder: Path) -> None:
    (tiny_llama_folder / "tokenizer.json").unlink()
    (tiny_llama_folder / "tokenizer_config.json").unlink()
    with pytest.raises(LoadError, match=r"the tokenizer of .* cannot be loaded"):
        find_checkpoint(str(tiny_llama_folder))


def test_a_tokenizer_that_transformers_makes_of_nothing_is_refused(
    tiny_llama_folder: Path, edit_config: EditConfig
) -> None:
    edit_config(tiny_llama_folder, model_type="gpt2")
    (tiny_llama_folder / "tokenizer.json").unlink()
    (tiny_llama_folder / "tokenizer_config.json").unlink()
    with pytest.raises(LoadError, match="it knows special tokens only; its files are missing"):
        find_checkpoint(str(tiny_llama_folder))


def test_code_of_a_model_does_not_run_unasked(model_with_code: Path) -> None:
    with pytest.raises(LoadError, match="pass trust_remote_code=True if you trust it"):
        find_checkpoint(str(model_with_code))
    assert not (model_with_code / "ran").exists()


@pytest.mark.usefixtures("own_module_cache")
def test_code_of_a_model_runs_when_asked_for(model_with_code: Path) -> None:
    found = find_checkpoint(str(model_with_code), LoadOptions(trust_remote_code=True))
    assert type(found.config).__name__ == "OwnConfig"
    assert (model_with_code / "ran").exists()


def test_code_beside_a_known_model_type_does_not_run_unasked(
    model_with_code: Path, edit_config: EditConfig
) -> None:
    edit_config(model_with_code, model_type="llama")
    assert type(find_checkpoint(str(model_with_code)).config) is LlamaConfig
    assert not (model_with_code / "ran").exists()


def test_a_file_named_as_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidInputError, match="leave out the slash at its end"):
        find_checkpoint(f"{tmp_path}/m.gguf/")


def test_a_broken_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"<html>")
    with pytest.raises(LoadError, match="is no GGUF file"):
        find_checkpoint(str(tmp_path / "m.gguf"))


def test_the_default_name_stands_for_the_embedded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(checkpoint_module.PACKAGED_MODELS, DEFAULT_MODEL, lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT_MODEL).mkdir()
    assert locate(DEFAULT_MODEL) == tmp_path
    assert locate(f"./{DEFAULT_MODEL}") == Path(DEFAULT_MODEL)


def test_a_home_folder_is_expanded(
    tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tiny_llama_folder.parent))
    name = f"~/{tiny_llama_folder.name}"
    assert locate(name) == tiny_llama_folder


def test_end_tokens_are_those_of_the_generation_config_alone(
    tiny_llama_folder: Path, edit_config: EditConfig
) -> None:
    edit_config(tiny_llama_folder, eos_token_id=0)
    GenerationConfig(eos_token_id=[2, 1]).save_pretrained(tiny_llama_folder)
    assert end_token_ids(find_checkpoint(str(tiny_llama_folder))) == {1, 2}


@pytest.mark.parametrize(("in_config", "ends"), [(5, {5}), (None, {7}), ("left out", {7})])
def test_without_a_generation_config_end_tokens_are_stated_or_the_tokenizers(
    tiny_llama_folder: Path, in_config: object, ends: set[int]
) -> None:
    for name in ("generation_config.json", "chat_template.jinja"):
        (tiny_llama_folder / name).unlink()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder, trust_remote_code=False)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(7)
    tokenizer.save_pretrained(tiny_llama_folder)
    path = tiny_llama_folder / "config.json"
    fields = json.loads(path.read_text()) | {"eos_token_id": in_config}
    if in_config == "left out":
        del fields["eos_token_id"]  # a Llama's class has 2
    path.write_text(json.dumps(fields))
    found = find_checkpoint(str(tiny_llama_folder))
    assert end_token_ids(found) == ends
    assert found.generation_config.eos_token_id == (5 if in_config == 5 else None)


@pytest.mark.parametrize(
    "text", ['{"eos_token_id": 2,}', "", '\ufeff{"eos_token_id": 2}', "[" * 9999]
)
def test_a_generation_config_that_is_no_json_is_left_out_with_a_warning(
    tiny_llama_folder: Path, text: str
) -> None:
    (tiny_llama_folder / "generation_config.json").write_text(text, "utf-8")
    with pytest.warns(UserWarning, match=r"generation_config\.json .* it is left out"):
        found = find_checkpoint(str(tiny_llama_folder))
    assert end_token_ids(found) == {2}


@pytest.mark.parametrize(
    "fields",
    [
        {"eos_token_id": 2.0},
        {"eos_token_id": [[2]]},
        {"eos_token_id": True},
        {"eos_token_id": "2"},
        {"max_new_tokens": 0},
        {"max_new_tokens": "many"},
        {"cache_implementation": "none such"},
    ],
)
def test_a_generation_config_of_wrong_values_is_refused(
    tiny_llama_folder: Path, fields: dict[str, object]
) -> None:
    path = tiny_llama_folder / "generation_config.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(LoadError, match=re.escape(str(path))):
        find_checkpoint(str(tiny_llama_folder))


def test_the_end_of_a_turn_is_added_where_only_the_end_of_a_text_is_named(
    tiny_llama_folder: Path, edit_config: EditConfig
) -> None:
    edit_config(tiny_llama_folder, eos_token_id=0)
    GenerationConfig(eos_token_id=0).save_pretrained(tiny_llama_folder)
    assert end_token_ids(find_checkpoint(str(tiny_llama_folder))) == {0, 2}


def test_a_template_that_uses_the_named_end_token_adds_no_other(
    tiny_llama_folder: Path, edit_config: EditConfig
) -> None:
    edit_config(tiny_llama_folder, eos_token_id=1)
    GenerationConfig(eos_token_id=1).save_pretrained(tiny_llama_folder)
    assert end_token_ids(find_checkpoint(str(tiny_llama_folder))) == {1}


def test_without_named_end_tokens_the_tokenizers_counts(
    tiny_llama_folder: Path, edit_config: EditConfig
) -> None:
    edit_config(tiny_llama_folder, eos_token_id=None)
    GenerationConfig().save_pretrained(tiny_llama_folder)
    shutil.rmtree(tiny_llama_folder / "chat_template.jinja", ignore_errors=True)
    assert end_token_ids(find_checkpoint(str(tiny_llama_folder))) == {2}
