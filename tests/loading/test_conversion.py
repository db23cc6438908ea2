from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
)

from treesnake.errors import LoadError
from treesnake.loading.conversion import (
    build_config,
    convert_gguf,
    hugging_face_name,
)
from treesnake.loading.gguf_tokenizer import build_tokenizer
from treesnake.models.gguf import GgufFile
from treesnake.models.weights import open_weights

WriteGguf = Callable[..., Path]


def test_a_converted_model_gives_the_logits_of_the_original(
    tmp_path: Path, write_tiny_gguf: WriteGguf, tiny_llama: LlamaForCausalLM
) -> None:
    convert_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.arange(40).reshape(1, 40)
    with torch.inference_mode():
        assert torch.equal(converted(ids).logits, tiny_llama(ids).logits)


def test_matrices_are_stored_in_half_precision_and_norms_as_they_were(
    tmp_path: Path, write_tiny_gguf: WriteGguf
) -> None:
    convert_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path)
    for name, entry in open_weights(tmp_path).entries.items():
        assert entry.dtype == (torch.float32 if "norm" in name else torch.float16)


def test_a_converted_config_is_that_of_the_original(
    tmp_path: Path, write_tiny_gguf: WriteGguf, tiny_llama: LlamaForCausalLM
) -> None:
    config = build_config(GgufFile(write_tiny_gguf(tmp_path / "tiny.gguf")))
    stated = {"architectures": ["LlamaForCausalLM"], "dtype": "float16"}
    assert config.to_dict() == tiny_llama.config.to_dict() | stated


def test_a_converted_model_ends_where_the_original_did(
    tmp_path: Path, write_tiny_gguf: WriteGguf
) -> None:
    convert_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path)
    generation_config = GenerationConfig.from_pretrained(tmp_path)
    assert generation_config.eos_token_id == 2
    assert generation_config.pad_token_id == 2


def test_a_converted_tokenizer_is_the_one_that_was_built(
    tmp_path: Path, write_tiny_gguf: WriteGguf, tokenizer_metadata: dict[str, Any]
) -> None:
    convert_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path)
    loaded, built = AutoTokenizer.from_pretrained(tmp_path), build_tokenizer(tokenizer_metadata)
    assert loaded.backend_tokenizer.to_str() == built.backend_tokenizer.to_str()
    assert loaded.special_tokens_map == built.special_tokens_map
    assert loaded.model_max_length == 128
    messages = [{"role": "user", "content": "the hell"}]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nthe hell<|im_end|>\n<|im_start|>assistant\n"
    assert loaded(text).input_ids.count(1) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", "gemma"),
        ("tokenizer.ggml.pre", "llama-bpe"),
        ("tokenizer.ggml.add_bos_token", True),
    ],
)
def test_other_models_and_tokenizers_are_refused(
    tmp_path: Path, write_tiny_gguf: WriteGguf, key: str, value: object
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **{key: value})
    with pytest.raises(LoadError, match=f"has {key} = {value!r}; this conversion is for"):
        convert_gguf(path, tmp_path)


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.0.ssm_a", "rope_freqs.weight"])
def test_a_tensor_that_no_llama_has_is_refused(name: str) -> None:
    with pytest.raises(LoadError, match=f"holds a tensor {name!r}"):
        hugging_face_name(name)
