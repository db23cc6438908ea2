"""Configs that only the pass of a model, or the making of a network, finds fault with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from treesnake.errors import LoadError, UnsupportedModelError
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.networks import LoadedNetwork, load_network
from treesnake.loading.options import LoadOptions
from treesnake.models.weights import SINGLE_FILE
from treesnake.prompt import Prompt

EditConfig = Callable[..., None]

GENERIC = LoadOptions(engine="generic", dtype="float32")
NATIVE = LoadOptions(engine="native", dtype="float32")
TEXT = [3, 50, 60, 70, 80, 90, 100, 110, 120, 130]


def loaded(folder: Path, options: LoadOptions) -> LoadedNetwork:
    return load_network(find_checkpoint(str(folder), options), options)


def logits(folder: Path, options: LoadOptions) -> torch.Tensor:
    state = loaded(folder, options).network.new_state()
    state.prefill(Prompt.of(TEXT))
    return state.extend(TEXT[-1:], [-1])[0]


def test_layers_of_a_kind_that_the_rest_of_a_config_does_not_describe_are_told(
    tiny_llama_folder: Path, edit_config: EditConfig
) -> None:
    edit_config(tiny_llama_folder, layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(
        LoadError, match=r"config of .* is not one .* no attribute 'sliding_window'"
    ):
        loaded(tiny_llama_folder, GENERIC)


def test_a_model_that_fails_on_its_first_tokens_is_told(
    tiny_llama_folder: Path, edit_config: EditConfig
) -> None:
    edit_config(tiny_llama_folder, return_dict=False)
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM cannot score a token tree"):
        logits(tiny_llama_folder, GENERIC)


def test_a_window_says_nothing_to_a_family_without_windows(
    tiny_llama_folder: Path, edit_config: EditConfig
) -> None:
    expected = logits(tiny_llama_folder, NATIVE)
    edit_config(tiny_llama_folder, sliding_window=3)
    for options in (NATIVE, GENERIC):
        torch.testing.assert_close(
            logits(tiny_llama_folder, options), expected, rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("options", [NATIVE, GENERIC])
def test_whole_numbers_without_a_word_of_quantisation_are_refused(
    tiny_llama_folder: Path, options: LoadOptions
) -> None:
    path = tiny_llama_folder / SINGLE_FILE
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(96, 64, dtype=torch.int8)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"up_proj\.weight holds torch\.int8, .* no floating-point"):
        loaded(tiny_llama_folder, options)


def test_what_transformers_says_of_a_config_is_one_line(
    tiny_llama_folder: Path, edit_config: EditConfig
) -> None:
    edit_config(tiny_llama_folder, intermediate_size=None)
    with pytest.raises(LoadError) as told:
        find_checkpoint(str(tiny_llama_folder))
    assert "\n" not in str(told.value)
    assert str(told.value).count(str(tiny_llama_folder)) == 1


def test_a_tokenizer_that_is_no_json_is_told_by_its_file(tiny_llama_folder: Path) -> None:
    path = tiny_llama_folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()))[:-1])
    with pytest.raises(LoadError, match=r"tokenizer\.json is no JSON object .*; fetch it again"):
        find_checkpoint(str(tiny_llama_folder))


def test_a_window_that_shows_nothing_is_refused(
    tiny_llama_folder: Path, edit_config: EditConfig
) -> None:
    edit_config(tiny_llama_folder, model_type="mistral", sliding_window=0)
    with pytest.raises(LoadError, match="sliding_window = 0, which makes no sense"):
        find_checkpoint(str(tiny_llama_folder))
