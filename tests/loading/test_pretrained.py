import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DistilBertConfig,
    DistilBertModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from treesnake.errors import InvalidInputError, LoadError, UnsupportedModelError
from treesnake.loading import pretrained as load
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.options import DtypeName, LoadOptions
from treesnake.loading.pretrained import (
    find_model_class,
    load_checkpoint,
    load_pretrained,
    resolve_device,
    resolve_dtype,
)
from treesnake.models.weights import INDEX_FILE, SINGLE_FILE

IDS = torch.arange(40).reshape(1, 40)
CPU = torch.device("cpu")


@torch.inference_mode()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IDS).logits


def test_a_model_has_its_own_weights_and_is_ready_for_inference(
    tiny_llama_folder: Path, tiny_llama: LlamaForCausalLM
) -> None:
    loaded = load_pretrained(str(tiny_llama_folder), LoadOptions(device="cpu"))
    assert torch.equal(logits(loaded.model), logits(tiny_llama))
    assert loaded.name == str(tiny_llama_folder)
    assert loaded.config is loaded.checkpoint.config
    assert loaded.tokenizer is loaded.checkpoint.tokenizer
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.config.name_or_path == str(tiny_llama_folder)
    assert loaded.model.generation_config.eos_token_id == 2


def test_tied_weights_stay_one_tensor(tiny_llama_folder: Path) -> None:
    model = load_pretrained(str(tiny_llama_folder), LoadOptions(device="cpu")).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_get_the_dtype_that_was_asked_for(
    tiny_llama_folder: Path, dtype: DtypeName
) -> None:
    model = load_pretrained(str(tiny_llama_folder), LoadOptions(dtype=dtype, device="cpu")).model
    stored = load_file(tiny_llama_folder / SINGLE_FILE)["model.norm.weight"]
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert torch.equal(model.model.norm.weight, stored.to(getattr(torch, dtype)))


def test_auto_is_float32_on_a_cpu_and_the_stored_dtype_elsewhere(tiny_llama_folder: Path) -> None:
    checkpoint = find_checkpoint(str(tiny_llama_folder))
    assert resolve_dtype("auto", checkpoint, CPU) == torch.float32
    assert resolve_dtype("auto", checkpoint, torch.device("cuda")) == torch.float16


def test_an_unstated_dtype_is_float32(tiny_llama_folder: Path) -> None:
    path = tiny_llama_folder / "config.json"
    config = json.loads(path.read_text())
    del config["dtype"]
    path.write_text(json.dumps(config))
    checkpoint = find_checkpoint(str(tiny_llama_folder))
    assert resolve_dtype("auto", checkpoint, torch.device("cuda")) == torch.float32


def test_int8_is_refused_for_transformers_modules(tiny_llama_folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="int8 weights exist in the native CPU engine"):
        load_pretrained(str(tiny_llama_folder), LoadOptions(dtype="int8", device="cpu"))


def test_shards_are_loaded_like_one_file(
    tiny_llama_folder: Path, tiny_llama: LlamaForCausalLM
) -> None:
    tensors = load_file(tiny_llama_folder / SINGLE_FILE)
    (tiny_llama_folder / SINGLE_FILE).unlink()
    names = sorted(tensors)
    files = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(names)}
    for shard in set(files.values()):
        part = {name: tensors[name] for name in names if files[name] == shard}
        save_file(part, tiny_llama_folder / shard)
    (tiny_llama_folder / INDEX_FILE).write_text(json.dumps({"weight_map": files}))
    loaded = load_pretrained(str(tiny_llama_folder), LoadOptions(device="cpu"))
    assert torch.equal(logits(loaded.model), logits(tiny_llama))


def test_experts_that_transformers_merges_are_loaded_as_transformers_does(
    tiny_llama_folder: Path,
) -> None:
    config = MixtralConfig(
        vocab_size=288,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    MixtralForCausalLM(config).bfloat16().save_pretrained(tiny_llama_folder)
    loaded = load_pretrained(str(tiny_llama_folder), LoadOptions(dtype="float32", device="cpu"))
    expected = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)
    assert torch.equal(logits(loaded.model), logits(expected))


def test_missing_tensors_are_refused_instead_of_drawn_at_random(tiny_llama_folder: Path) -> None:
    tensors = load_file(tiny_llama_folder / SINGLE_FILE)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tiny_llama_folder / SINGLE_FILE)
    with pytest.raises(
        LoadError, match=r"lacks 1 of the tensors .*, model\.layers\.1\.mlp\.up_proj"
    ):
        load_pretrained(str(tiny_llama_folder), LoadOptions(device="cpu"))


def test_tensors_of_another_shape_are_refused(tiny_llama_folder: Path) -> None:
    tensors = load_file(tiny_llama_folder / SINGLE_FILE)
    tensors["model.norm.weight"] = torch.zeros(7)
    save_file(tensors, tiny_llama_folder / SINGLE_FILE)
    with pytest.raises(
        LoadError, match=r"norm\.weight has shape \[7\], the config promises \[64\]"
    ):
        load_pretrained(str(tiny_llama_folder), LoadOptions(device="cpu"))


def test_a_file_that_breaks_after_it_was_found_is_refused(tiny_llama_folder: Path) -> None:
    checkpoint = find_checkpoint(str(tiny_llama_folder))
    path = tiny_llama_folder / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LoadError, match="ended in the middle of"):
        load_checkpoint(checkpoint, LoadOptions(device="cpu"))


def test_encoders_and_models_with_encoders_are_refused(tiny_llama_folder: Path) -> None:
    t5 = T5Config(vocab_size=288, d_model=16, d_ff=16, d_kv=4, num_layers=1, num_heads=2)
    bert = DistilBertConfig(vocab_size=288, dim=16, hidden_dim=16, n_layers=1, n_heads=2)
    for model in (T5ForConditionalGeneration(t5), DistilBertModel(bert)):
        model.save_pretrained(tiny_llama_folder)
        with pytest.raises(UnsupportedModelError, match="no decoder-only language model"):
            find_model_class(find_checkpoint(str(tiny_llama_folder)))


@pytest.mark.usefixtures("own_module_cache")
def test_a_model_with_code_of_its_own_is_loaded_when_asked_for(
    model_with_code: Path, tiny_llama: LlamaForCausalLM
) -> None:
    loaded = load_pretrained(
        str(model_with_code), LoadOptions(device="cpu", trust_remote_code=True)
    )
    assert type(loaded.model).__name__ == "OwnModel"
    assert torch.equal(logits(loaded.model), logits(tiny_llama))


def test_too_large_a_model_is_refused_before_it_is_read(
    tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treesnake.loading.memory.free_bytes", lambda _device: 1000)
    monkeypatch.setattr(load, "find_model_class", Mock())
    with pytest.raises(LoadError, match="GB are free on cpu"):
        load_pretrained(str(tiny_llama_folder), LoadOptions(device="cpu"))


def test_a_device_map_places_the_layers(
    tiny_llama_folder: Path, tiny_llama: LlamaForCausalLM
) -> None:
    pytest.importorskip("accelerate")
    loaded = load_pretrained(
        str(tiny_llama_folder), LoadOptions(device_map={"": "cpu"}, dtype="float32")
    )
    assert torch.equal(logits(loaded.model), logits(tiny_llama))


@pytest.mark.parametrize("device", ["potato", "xpu", "cpu:1", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(InvalidInputError, match=device):
        resolve_device(device)


def test_auto_prefers_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


@pytest.mark.gpu
def test_a_model_on_a_gpu_has_its_own_weights(
    tiny_llama_folder: Path, tiny_llama: LlamaForCausalLM
) -> None:
    loaded = load_pretrained(str(tiny_llama_folder), LoadOptions(dtype="float32", device="cuda"))
    for name, parameter in loaded.model.named_parameters():
        assert parameter.device.type == "cuda"
        assert torch.equal(parameter.cpu(), tiny_llama.get_parameter(name))


def test_a_layer_that_the_config_leaves_out_is_refused(
    tiny_llama_folder: Path, edit_config: Callable[..., None]
) -> None:
    edit_config(tiny_llama_folder, num_hidden_layers=1)
    with pytest.raises(LoadError, match=r"more of its network .*model\.layers\.1\."):
        load_pretrained(str(tiny_llama_folder), LoadOptions(device="cpu"))
    edit_config(tiny_llama_folder, num_nextn_predict_layers=1)
    load_pretrained(str(tiny_llama_folder), LoadOptions(device="cpu"))
