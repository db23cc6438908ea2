"""What a GGUF file states of a model is what runs, or the file is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake.errors import LoadError
from treesnake.loading import gguf_models
from treesnake.loading.checkpoint import end_token_ids, find_checkpoint
from treesnake.loading.pretrained import load_pretrained
from treesnake.models.gguf import GgufFile

pytest.importorskip("gguf")

Write = Callable[..., Path]

TOKENS = torch.arange(20, 100)[None]

SCALED = {
    "linear": (
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"rope_type": "linear", "factor": 4.0},
    ),
    "linear, as older files say it": (
        {"llama.rope.scale_linear": 4.0},
        {"rope_type": "linear", "factor": 4.0},
    ),
    "yarn": (
        {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 32,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    "none": ({"llama.rope.scaling.type": "none"}, {"rope_type": "default"}),
}


def rescaled(model: LlamaForCausalLM, rope: dict[str, object]) -> LlamaForCausalLM:
    config = LlamaConfig(
        **(model.config.to_dict() | {"rope_parameters": {"rope_theta": 10000.0} | rope})
    )
    other = LlamaForCausalLM(config).eval()
    other.load_state_dict(model.state_dict())
    return other


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(TOKENS).logits[0, -1]


@pytest.mark.parametrize("kind", SCALED)
def test_positions_are_scaled_as_the_file_says(
    tmp_path: Path, write_tiny_gguf: Write, tiny_llama: LlamaForCausalLM, kind: str
) -> None:
    stated, rope = SCALED[kind]
    loaded = load_pretrained(str(write_tiny_gguf(tmp_path / "m.gguf", **stated)))
    right = logits(rescaled(tiny_llama, rope))
    assert torch.allclose(logits(loaded.model), right, atol=1e-4)
    assert (kind == "none") == torch.allclose(right, logits(tiny_llama), atol=1e-4)


def test_factors_of_rotary_pairs_scale_positions(
    tmp_path: Path, write_tiny_gguf: Write, tiny_llama: LlamaForCausalLM
) -> None:
    right = rescaled(
        tiny_llama,
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    )
    unscaled = 1 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    factors = (unscaled / right.model.rotary_emb.inv_freq).numpy()
    path = write_tiny_gguf(tmp_path / "m.gguf", {"rope_freqs.weight": factors})
    loaded = load_pretrained(str(path))
    assert torch.allclose(logits(loaded.model), logits(right), atol=1e-4)


def test_factors_of_another_number_are_refused(tmp_path: Path, write_tiny_gguf: Write) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", {"rope_freqs.weight": np.ones(5, np.float32)})
    with pytest.raises(LoadError, match="with 5 factors, which are not those of a llama model"):
        load_pretrained(str(path))


def test_tensors_that_a_family_does_not_have_are_refused(
    tmp_path: Path, write_tiny_gguf: Write
) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", {"blk.0.attn_q.bias": np.ones(64, np.float32)})
    with pytest.raises(
        LoadError, match=r"more of its network .*layers\.0\.self_attn\.q_proj\.bias"
    ):
        load_pretrained(str(path))
    path = write_tiny_gguf(tmp_path / "n.gguf", {"blk.0.ffn_gate_inp": np.ones(64, np.float32)})
    with pytest.raises(LoadError, match=r"1 tensors that no llama model has, blk\.0\.ffn_gate_inp"):
        find_checkpoint(str(path))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("llama.rope.scaling.type", "longrope", "scaled by 'longrope'"),
        ("llama.expert_count", 4, "expert_count = 4, where a model with None"),
        ("llama.attention.sliding_window", 64, "sliding_window = 64, where"),
        ("llama.attention.key_length", 32, "dimension_count = 16, where .* with 32"),
        ("llama.rope.dimension_count", 0, "rope.dimension_count = 0"),
        ("llama.unheard_of", 64, "unheard_of = 64, which is not known here"),
        ("llama.vocab_size", 300, r"shape \[288, 64\], .* promise \[300, 64\]"),
        ("llama.context_length", "long", "context_length = 'long'"),
        ("llama.context_length", -5, "context_length = -5"),
        ("llama.block_count", 2.0, "block_count = 2.0"),
        ("llama.block_count", [2, 2], "block_count = "),
        ("llama.block_count", 5000, "holds 2 blocks, its metadata promise 5000"),
        ("llama.embedding_length", 2**30, r"promise \[288, 1073741824\]"),
        ("llama.rope.freq_base", 0.0, "freq_base = 0.0"),
        ("llama.rope.freq_base_swa", "low", "freq_base_swa = 'low'"),
        ("llama.attention.sliding_window", "wide", "sliding_window = 'wide'"),
        ("llama.embedding_length", 0, "embedding_length = "),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "epsilon = nan"),
        ("llama.rope.freq_base", "high", "freq_base = 'high'"),
        ("general.type", "adapter", "holds no model but 'adapter'"),
        ("tokenizer.ggml.tokens", ["a"], "a list of 288 for 1 tokens"),
        ("tokenizer.ggml.tokens", "a", "tokens = 'a', which is no list"),
        ("tokenizer.ggml.merges", [1], "merges = "),
        ("tokenizer.ggml.eos_token_id", 288, "eos_token_id = 288, which is none of its 288"),
        ("tokenizer.ggml.bos_token_id", -1, "bos_token_id = -1"),
        ("tokenizer.ggml.model", 7, "tokenizer.ggml.model = 7"),
        ("tokenizer.chat_template", 7, "chat_template = 7"),
        ("split.count", 2, "one of 2 parts of a split model, which are known by their names"),
    ],
)
def test_what_would_be_passed_over_or_makes_no_sense_is_refused(
    tmp_path: Path, write_tiny_gguf: Write, key: str, value: object, reason: str
) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", **{key: value})
    with pytest.raises(LoadError, match=reason):
        find_checkpoint(str(path))


def test_what_transformers_means_as_well_may_be_stated(
    tmp_path: Path, write_tiny_gguf: Write
) -> None:
    stated = {
        "general.author": "somebody",
        "llama.vocab_size": 288,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.expert_count": 0,
        "llama.attention.sliding_window": 0,
    }
    assert find_checkpoint(str(write_tiny_gguf(tmp_path / "m.gguf", **stated)))


def test_the_end_of_a_turn_is_an_end_token(tmp_path: Path, write_tiny_gguf: Write) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", **{"tokenizer.ggml.eot_token_id": 0})
    assert end_token_ids(find_checkpoint(str(path))) == {0, 2}


@pytest.mark.parametrize("name", ["M.GGUF", "sha256-0123abcd"])
def test_a_file_is_known_by_its_first_bytes(
    tmp_path: Path, write_tiny_gguf: Write, name: str
) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf").rename(tmp_path / name)
    loaded = load_pretrained(str(path))
    assert loaded.config.model_type == "llama"


def test_tensors_of_other_shapes_are_told(tmp_path: Path, write_tiny_gguf: Write) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", **{"llama.feed_forward_length": 48})
    with pytest.raises(LoadError, match=r"0\.mlp\.gate_proj\.weight has shape \[96, 64\], the"):
        load_pretrained(str(path))


def test_metadata_of_a_larger_model_are_told_before_it_is_built(
    tmp_path: Path, write_tiny_gguf: Write
) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", **{"llama.feed_forward_length": 10**9})
    with pytest.raises(LoadError, match=r"has shape \[96, 64\], the config promises \[1000000000"):
        load_pretrained(str(path))


def test_a_file_that_transformers_must_read_needs_its_packages_and_is_whole(
    tmp_path: Path, write_tiny_gguf: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = {"general.architecture": "unheard"}
    foreign |= {f"unheard.{key}": 64 for key in gguf_models.REQUIRED_KEYS}
    path = write_tiny_gguf(tmp_path / "m.gguf", **foreign)
    with pytest.raises(LoadError, match="transformers cannot read it"):
        find_checkpoint(str(path))
    file = GgufFile(path)
    file.metadata["split.count"] = 2
    with pytest.raises(LoadError, match="it is a split model, and transformers"):
        gguf_models.read_gguf_config(file)
    monkeypatch.setattr(gguf_models, "find_spec", lambda _name: None)
    with pytest.raises(LoadError, match="'unheard' need gguf and accelerate; install treesnake"):
        find_checkpoint(str(path))
