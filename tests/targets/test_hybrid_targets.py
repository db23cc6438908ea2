"""Recurrent and hybrid folders as targets: who runs them, what is said, and what they say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from treesnake import SpeculativeDecoder, StaticSearch, custom_generate
from treesnake.cli.app import app
from treesnake.errors import InvalidInputError, UnsupportedModelError
from treesnake.loading.options import LoadOptions
from treesnake.models.hf_hybrid import HfHybrid
from treesnake.models.hf_replay import HfReplay
from treesnake.shape import LevelWidths
from treesnake.targets.load import load_target
from treesnake.testing.recurrent import RECURRENT_FAMILIES

PROMPT = [3, 5, 3, 5, 7, 3, 5]
NUM_NEW = 20
SETTINGS: dict[str, Any] = {
    name: RECURRENT_FAMILIES[name]
    for name in ("falcon_mamba", "falcon_h1", "lfm2", "mamba2", "qwen3_next")
}
SETTINGS["rwkv"] = {"attention_hidden_size": 32}
ENGINES = {"rwkv": HfReplay}


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory) -> Callable[[str], Path]:
    def make(family: str) -> Path:
        path = tmp_path_factory.mktemp(family)
        model = tiny_model(family, **SETTINGS[family])
        model.generation_config.eos_token_id = None
        model.save_pretrained(path)
        words = {f"w{index}": index for index in range(61)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
        return path

    return make


def expected(model: Any) -> list[int]:
    output = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=None
    )
    return output[0].tolist()


@pytest.mark.parametrize("family", ["falcon_h1", "lfm2", "qwen3_next", "rwkv"])
def test_a_folder_is_run_by_transformers_own_model(family, folder):
    path = str(folder(family))
    model, loaded = load_target(path, LoadOptions(device="cpu"))
    assert isinstance(model.network, ENGINES.get(family, HfHybrid))
    assert loaded.engine == "generic"
    assert ("copied for every branch" in loaded.why) == (family == "rwkv")
    decoder = SpeculativeDecoder.from_pretrained(
        path, "prompt-lookup", device="cpu", search=StaticSearch(LevelWidths((3, 2, 2)))
    )
    text = decoder.generate(PROMPT, max_new_tokens=NUM_NEW).token_ids
    assert [*PROMPT, *text] == expected(model.network.model)


def test_info_says_engine_and_reason(folder):
    path = str(folder("falcon_h1"))
    result = CliRunner().invoke(app, ["info", path, "--device", "cpu", "--json"])
    described = json.loads(result.output)["model"]
    assert described["engine"].startswith("generic (")
    assert "falcon_h1" in described["engine"]


def test_what_the_generic_engine_cannot_is_refused(folder):
    path = str(folder("lfm2"))
    for options in (LoadOptions("int8", "cpu"), LoadOptions(device="cpu", engine="native")):
        with pytest.raises(UnsupportedModelError, match="cannot run in the native engine"):
            load_target(path, options)


@pytest.mark.parametrize("family", SETTINGS)
def test_inside_generate_the_text_is_what_generate_returns(family, tiny_model):
    model = tiny_model(family, **SETTINGS[family])
    for search in (None, StaticSearch(LevelWidths((3, 2, 2)))):
        ours = model.generate(
            torch.tensor([PROMPT]),
            custom_generate=custom_generate,
            search=search,
            max_new_tokens=NUM_NEW,
            do_sample=False,
            eos_token_id=None,
        )
        assert ours[0].tolist() == expected(model)


@pytest.mark.parametrize("family", ["falcon_mamba", "falcon_h1"])
def test_a_cache_that_holds_a_text_is_refused(family, tiny_model):
    model = tiny_model(family, **SETTINGS[family])
    name = "cache_params" if family == "falcon_mamba" else "past_key_values"
    cache = model(torch.tensor([PROMPT]), use_cache=True)[name]
    with pytest.raises(InvalidInputError, match=f"without ({name}|cache)"):
        model.generate(
            torch.tensor([[*PROMPT, 4]]),
            custom_generate=custom_generate,
            max_new_tokens=3,
            **{name: cache},
        )
