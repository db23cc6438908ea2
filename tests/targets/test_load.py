"""Which engine runs what, and what is said where none can."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from treesnake import SpeculativeDecoder
from treesnake.errors import InvalidInputError, LoadError, TreesnakeError, UnsupportedModelError
from treesnake.loading.architecture import Architecture
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.options import LoadOptions
from treesnake.models.gguf import GgufFile
from treesnake.models.hf_attention import HfAttention
from treesnake.models.transformer import Transformer
from treesnake.targets.load import load_target

VOCABULARY = {letter: index for index, letter in enumerate("abcdefghijklmnop")}


def save(model: PreTrainedModel, folder: Path) -> str:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="p").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=15,
    )
    return save(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=64, n_embd=32, n_layer=1, n_head=2, eos_token_id=15
    )
    return save(GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"))


def test_the_native_engine_runs_what_it_knows(llama: str) -> None:
    model, loaded = load_target(llama, LoadOptions(device="cpu"))
    assert isinstance(model.network, Transformer)
    assert loaded.description["engine"] == "native (fastest for llama)"
    assert loaded.description["dtype"] == "float32"
    assert loaded.description["context"] == 64
    assert loaded.num_bytes > 0


def test_the_generic_engine_runs_the_rest_and_says_why(gpt2: str) -> None:
    model, loaded = load_target(gpt2, LoadOptions(device="cpu"))
    assert isinstance(model.network, HfAttention)
    assert loaded.engine == "generic"
    assert "gpt2" in loaded.why


def test_an_engine_may_be_asked_for(llama: str) -> None:
    for engine in ("native", "generic"):
        _, loaded = load_target(llama, LoadOptions(device="cpu", engine=engine))
        assert (loaded.engine, loaded.why) == (engine, "as asked")


def test_a_decoder_is_made_of_a_name(llama: str) -> None:
    texts = {
        SpeculativeDecoder.from_pretrained(llama, device="cpu", engine=engine)
        .generate("a b a b a", max_new_tokens=12)
        .token_ids
        for engine in ("native", "generic")
    }
    assert len(texts) == 1


REFUSED: list[tuple[str, dict[str, Any], type[TreesnakeError], str]] = [
    (
        "gpt2",
        {"engine": "native"},
        UnsupportedModelError,
        "cannot run in the native engine: .*gpt2",
    ),
    (
        "gpt2",
        {"dtype": "int8"},
        UnsupportedModelError,
        "cannot run in the native engine, as int8 must: .*gpt2",
    ),
    (
        "llama",
        {"engine": "generic", "dtype": "int8"},
        InvalidInputError,
        "int8 weights are for the native engine; leave the engine at auto",
    ),
    (
        "llama",
        {"device": "cpu", "device_map": "auto"},
        InvalidInputError,
        "device and device_map exclude each other",
    ),
    ("llama", {"device": "abacus"}, InvalidInputError, "unknown device 'abacus'"),
    ("llama", {"revision": "main"}, InvalidInputError, "is for models at the hub"),
]


@pytest.mark.parametrize(("name", "options", "error", "message"), REFUSED)
def test_options_that_contradict_each_other_are_refused(
    name: str,
    options: dict[str, Any],
    error: type[TreesnakeError],
    message: str,
    request: pytest.FixtureRequest,
) -> None:
    with pytest.raises(error, match=message):
        load_target(request.getfixturevalue(name), LoadOptions(**({"device": "cpu"} | options)))


def test_a_device_map_needs_accelerate_or_the_generic_engine(llama: str) -> None:
    with pytest.raises((LoadError, UnsupportedModelError), match=r"accelerate|not on a device_map"):
        load_target(llama, LoadOptions(engine="native", device_map="auto"))


class EmptyGguf(GgufFile):
    def __init__(self) -> None:
        """Reads nothing."""

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_a_gguf_file_that_transformers_must_read_is_not_for_the_native_engine(
    llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = find_checkpoint(llama)
    found = replace(checkpoint.found, architecture=Architecture.GGUF)
    gguf = replace(checkpoint, found=found, weights=EmptyGguf())
    monkeypatch.setattr("treesnake.targets.load.find_checkpoint", lambda *_, **__: gguf)
    with pytest.raises(UnsupportedModelError, match="not know the architecture of this GGUF"):
        load_target(llama, LoadOptions(device="cpu", engine="native"))
