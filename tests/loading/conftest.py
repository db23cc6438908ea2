"""A tiny Llama with a byte-level tokenizer, in a folder like those of the hub."""

import copy
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake.loading.gguf_tokenizer import build_tokenizer

VOCAB_SIZE = 288
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "Ġ t", "Ġt he"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer_metadata() -> dict[str, Any]:
    """What a GGUF file says of a tokenizer: every byte, four merges and three control tokens."""
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*CONTROL_TOKENS, *sorted(ByteLevel.alphabet()), *merged]
    tokens += [f"unused{index}" for index in range(VOCAB_SIZE - len(tokens))]
    kinds = [3 if token in CONTROL_TOKENS else 1 for token in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
        "llama.context_length": 128,
    }


@pytest.fixture(scope="session")
def tiny_llama() -> LlamaForCausalLM:
    """Random weights in float32 that half precision holds exactly."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    generator = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
            parameter.copy_(parameter.half())
    return model.eval()


@pytest.fixture
def tiny_llama_folder(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tokenizer_metadata: dict[str, Any]
) -> Path:
    """A folder with the tiny Llama in half precision and its tokenizer."""
    folder = tmp_path / "tiny-llama"
    copy.deepcopy(tiny_llama).half().save_pretrained(folder)
    build_tokenizer(tokenizer_metadata).save_pretrained(folder)
    return folder


@pytest.fixture
def edit_config() -> Callable[..., None]:
    """Changes fields of a folder's config.json."""

    def edit(folder: Path, **fields: object) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


@pytest.fixture
def model_with_code(tiny_llama_folder: Path, edit_config: Callable[..., None]) -> Path:
    """The tiny Llama as a model type of its own, whose code leaves a file behind when it runs."""
    (tiny_llama_folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(tiny_llama_folder / 'ran')!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n"
        "    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n"
        "    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit_config(tiny_llama_folder, model_type="own", auto_map=auto_map)
    return tiny_llama_folder


@pytest.fixture
def own_module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the copies that transformers makes of a model's code out of the user's cache."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def write_tiny_gguf(
    tiny_llama: LlamaForCausalLM, tokenizer_metadata: dict[str, Any]
) -> Callable[..., Path]:
    """Writes the tiny Llama as a GGUF file with ggml's own package, which ours is to understand."""
    gguf = pytest.importorskip("gguf")
    config = tiny_llama.config
    dimensions = {
        "llama.block_count": config.num_hidden_layers,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)

    def write(path: Path, added: Mapping[str, np.ndarray] | None = None, **changes: object) -> Path:
        metadata = dimensions | tokenizer_metadata | changes
        writer = gguf.GGUFWriter(path, metadata.pop("general.architecture", "llama"))
        for key, value in metadata.items():
            kind = gguf.GGUFValueType.get_type(value)
            element = gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None
            writer.add_key_value(key, value, kind, element)
        for name, parameter in tiny_llama.named_parameters():
            values = parameter.detach()
            if "q_proj" in name or "k_proj" in name:  # llama.cpp puts rotary pairs side by side
                heads = values.unflatten(0, (-1, 2, config.head_dim // 2))
                values = heads.transpose(1, 2).flatten(0, 2)
            writer.add_tensor(
                names.get_name(name, (".weight",)), np.ascontiguousarray(values.numpy())
            )
        for name, values in (added or {}).items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
