"""Logits of our engines beside those of transformers' own model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.networks import load_network
from treesnake.loading.options import EngineName, LoadOptions
from treesnake.loading.reference import LogitsComparison, Reference, find_reference
from treesnake.models.weights import SINGLE_FILE


def options(engine: EngineName = "auto") -> LoadOptions:
    return LoadOptions("float32", "cpu", engine)


def compared(folder: Path, engine: EngineName, loaded_from: Path | None = None) -> LogitsComparison:
    reference = find_reference(str(folder), options(engine))
    assert isinstance(reference, Reference)
    checkpoint = find_checkpoint(str(loaded_from or folder))
    return reference.compare(load_network(checkpoint, options(engine)).network)


@pytest.mark.parametrize("engine", ["native", "generic"])
def test_both_engines_have_the_logits_of_transformers(
    tiny_llama_folder: Path, engine: EngineName
) -> None:
    comparison = compared(tiny_llama_folder, engine)
    assert comparison.is_passed
    assert comparison.num_positions == 8
    assert comparison.error < 1e-4
    assert "not loaded" not in comparison.sentence


def test_a_network_with_one_other_matrix_is_found(tiny_llama_folder: Path) -> None:
    reference = find_reference(str(tiny_llama_folder), options())
    tensors = load_file(tiny_llama_folder / SINGLE_FILE)
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file(tensors | {name: tensors[name].flip(0)}, tiny_llama_folder / SINGLE_FILE)
    checkpoint = find_checkpoint(str(tiny_llama_folder))
    comparison = reference.compare(load_network(checkpoint, options()).network)
    assert not comparison.is_passed
    assert "was not loaded as transformers loads it" in comparison.sentence
    assert comparison.as_json()["is_passed"] is False


def test_logits_that_are_no_numbers_do_not_pass() -> None:
    assert not LogitsComparison(8, float("nan"), 1e-3).is_passed


def test_where_there_is_no_memory_for_a_reference_that_is_said(
    tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_network(find_checkpoint(str(tiny_llama_folder)), options()).network
    monkeypatch.setattr("treesnake.loading.memory.free_bytes", lambda _device: 1000)
    comparison = find_reference(str(tiny_llama_folder), options()).compare(network)
    assert comparison.is_passed
    assert "not compared with transformers': " in comparison.sentence
    assert "GB are free" in comparison.sentence


def test_a_reference_leaves_no_model_behind(tiny_llama_folder: Path) -> None:
    reference = find_reference(str(tiny_llama_folder), options())
    assert isinstance(reference, Reference)
    assert reference.logits.shape == (8, 288)
    assert reference.logits.untyped_storage().nbytes() == 8 * 288 * torch.float32.itemsize
