"""Mamba and Mamba-2 as targets by name: the texts are those of transformers' own models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from treesnake import SpeculativeDecoder
from treesnake.cli.app import app
from treesnake.errors import InvalidInputError, LoadError
from treesnake.loading.checkpoint import end_token_ids
from treesnake.loading.options import LoadOptions
from treesnake.models.checkpoint import read_network, save_network
from treesnake.models.hf_hybrid import HfHybrid
from treesnake.models.state_space_cpu import CpuNetwork
from treesnake.targets.load import load_target

VOCABULARY = {f"t{index}": index for index in range(61)}
END = 60
NUM_NEW = 24
PROMPT = [5, 17, 5, 17, 42, 9]
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "state_size": 8,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": None,
}
ON_CPU = LoadOptions(device="cpu")


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Writes a model whose matrices are drawn wide, so that no two tokens are about as probable."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and not name.endswith("A_log"):
                parameter.normal_(0, 0.4, generator=generator)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "mamba":
        return save(MambaForCausalLM(MambaConfig(**SIZES)), path)
    heads = {"num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 16}
    return save(Mamba2ForCausalLM(Mamba2Config(**SIZES, **heads)), path)


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[int, ...]:
    """What transformers continues the prompt with."""
    kind: Any = MambaForCausalLM if "mamba2" not in folder.name else Mamba2ForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    output = model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
        max_new_tokens=NUM_NEW,
        do_sample=False,
        pad_token_id=0,
    )
    return tuple(output[0, len(PROMPT) :].tolist())


@pytest.mark.parametrize("search", ["off", "chain(4)", "3x2x2"])
@pytest.mark.parametrize("drafter", ["none", "prompt-lookup", "itself"])
def test_greedy_texts_are_those_of_transformers(
    folder: Path, expected: tuple[int, ...], drafter: str, search: str
) -> None:
    named = str(folder) if drafter == "itself" else drafter
    decoder = SpeculativeDecoder.from_pretrained(str(folder), named, device="cpu", search=search)
    generation = decoder.generate(PROMPT, max_new_tokens=NUM_NEW)
    assert generation.token_ids == expected


def test_a_target_has_the_stored_weights_unless_asked_otherwise(folder: Path) -> None:
    model, loaded = load_target(str(folder), ON_CPU)
    assert isinstance(model.network, CpuNetwork)
    assert (loaded.dtype, loaded.engine) == ("float32", "native")
    _, rounded = load_target(str(folder), LoadOptions(dtype="int8", device="cpu"))
    assert rounded.dtype == "int8"
    assert rounded.num_bytes < loaded.num_bytes


def test_info_describes_it(folder: Path) -> None:
    result = CliRunner().invoke(app, ["info", str(folder), "--device", "cpu", "--json"])
    described = json.loads(result.output)["model"]
    family = "mamba2" if "mamba2" in folder.name else "mamba"
    assert described["family"] == family
    assert described["engine"] == f"native (our own for {family})"
    assert described["context"] is None
    result = CliRunner().invoke(app, ["info", str(folder), "--device", "cpu"])
    assert "no limit" in result.output


def test_transformers_own_module_runs_it_where_that_is_asked_for(
    folder: Path, expected: tuple[int, ...]
) -> None:
    options = LoadOptions(device="cpu", engine="generic")
    model, loaded = load_target(str(folder), options)
    assert isinstance(model.network, HfHybrid)
    assert (loaded.engine, loaded.why) == ("generic", "as asked")
    decoder = SpeculativeDecoder.from_pretrained(
        str(folder), "prompt-lookup", device="cpu", engine="generic", search="3x2x2"
    )
    assert decoder.generate(PROMPT, max_new_tokens=NUM_NEW).token_ids == expected


def test_texts_end_where_the_config_says(folder: Path) -> None:
    _, loaded = load_target(str(folder), ON_CPU)
    assert end_token_ids(loaded.checkpoint) == {END}


def test_a_target_needs_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    save_network(read_network(folder), tmp_path)
    with pytest.raises(LoadError, match=r"the tokenizer of .* cannot be loaded"):
        load_target(str(tmp_path), ON_CPU)


def test_a_target_has_embeddings_of_its_own(folder: Path, tmp_path: Path) -> None:
    save_network(read_network(folder), tmp_path, folder, leave_out_embeddings=True)
    with pytest.raises(InvalidInputError, match="load it together with the target"):
        load_target(str(tmp_path), ON_CPU)


def test_the_original_layout_is_a_target_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = save(MambaForCausalLM(MambaConfig(**SIZES)), tmp_path / "theirs")
    original = tmp_path / "original"
    original.mkdir()
    sizes = {"d_model": 32, "n_layer": 3, "vocab_size": 61, "pad_vocab_size_multiple": 1}
    config = {**sizes, "ssm_cfg": {"d_state": 8}, "rms_norm": True}
    (original / "config.json").write_text(json.dumps(config))
    tensors = read_network(folder).state_dict()
    renamed = {name.replace("embeddings", "embedding"): part for name, part in tensors.items()}
    torch.save(renamed, original / "pytorch_model.bin")
    write_tokenizer(original)
    texts = {
        SpeculativeDecoder.from_pretrained(str(path), "none", device="cpu", dtype="float32")
        .generate(PROMPT, max_new_tokens=8)
        .token_ids
        for path in (folder, original)
    }
    assert len(texts) == 1
    _, loaded = load_target(str(original), ON_CPU)
    assert loaded.description["family"] == "mamba"
