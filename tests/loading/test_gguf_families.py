"""A file of each family is the model that it was written from, in both engines."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from treesnake import SpeculativeDecoder, StaticSearch, chain
from treesnake.errors import LoadError, UnsupportedModelError
from treesnake.loading.checkpoint import HYBRID, find_checkpoint
from treesnake.loading.file_configs import config_of_transformers
from treesnake.loading.gguf_families import FAMILIES
from treesnake.loading.grafts import grafted_weights
from treesnake.loading.memory import weight_bytes
from treesnake.loading.networks import keeps_integers, load_network
from treesnake.loading.options import EngineName, LoadOptions
from treesnake.loading.reference import Reference, find_reference
from treesnake.models.gguf import describe_formats, kept_packed
from treesnake.models.hybrid_config import HybridConfig
from treesnake.models.hybrid_cpu import CpuHybrid
from treesnake.models.tree_network import TreeNetwork
from treesnake.models.weights import Weights
from treesnake.prompt import Prompt
from treesnake.testing import check_network

gguf = pytest.importorskip("gguf")

SIZES: dict[str, Any] = {
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
}

PAIRED = ("llama", "mistral", "smollm3")

CONFIGS: Mapping[str, PreTrainedConfig] = {
    "gemma3": Gemma3TextConfig(
        **SIZES,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "olmo2": Olmo2Config(**SIZES | {"tie_word_embeddings": False}),
    "phi3": Phi3Config(
        **SIZES | {"tie_word_embeddings": False},
        rope_parameters={"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES | {"head_dim": 32}),
    "smollm3": SmolLM3Config(**SIZES),
}

STATED = {
    "gemma3": {
        "gemma3.attention.sliding_window": 8,
        "gemma3.attention.sliding_window_pattern": 2,
        "gemma3.rope.freq_base": 1e6,
    },
}
"""What files of a family state beside the sizes."""

TOKENS = list(range(20, 60))


@dataclass(frozen=True, eq=False)
class Written:
    """A model, and the file that holds it."""

    model: PreTrainedModel
    path: Path


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model


def write(
    path: Path,
    architecture: str,
    tokenizer: Mapping[str, Any],
    changes: Mapping[str, object],
    rotary_factors: np.ndarray | None = None,
    kind: str = "F32",
) -> Written:
    """Writes a random model as llama.cpp's converter would, with ggml's own package."""
    config = CONFIGS[architecture]
    model = random_model(config)
    head_dim = getattr(config, "head_dim", None) or 16
    sizes = {
        "block_count": 2,
        "context_length": 128,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": head_dim,
        "rope.dimension_count": 8 if architecture == "phi3" else head_dim,
        "rope.freq_base": float(config.rope_parameters.get("rope_theta", 0)),
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    metadata = {f"{architecture}.{key}": value for key, value in sizes.items()}
    metadata |= {key: tokenizer[key] for key in tokenizer if key.startswith("tokenizer")}
    metadata |= STATED.get(architecture, {}) | changes
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        value_type = gguf.GGUFValueType.get_type(value)
        element = gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None
        writer.add_key_value(key, value, value_type, element)
    known = {"mistral": "LLAMA"}.get(architecture, architecture.upper())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[known], 2)
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if architecture in PAIRED and ("q_proj" in name or "k_proj" in name):
            heads = values.unflatten(0, (-1, 2, head_dim // 2))
            values = heads.transpose(1, 2).flatten(0, 2)
        if architecture == "gemma3" and "norm" in name:
            values = values + 1
        own = names.get_name(name, (".weight", ".bias"))
        assert own is not None, name
        ggml_type = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        packed = gguf.quants.quantize(np.ascontiguousarray(values.numpy()), ggml_type)
        writer.add_tensor(own, packed, raw_dtype=ggml_type)
    if rotary_factors is not None:
        writer.add_tensor("rope_freqs.weight", rotary_factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(model, path)


@pytest.mark.parametrize("engine", ["native", "generic"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_file_gives_the_logits_of_its_model(
    tmp_path: Path, tokenizer_metadata: dict[str, Any], architecture: str, engine: Any
) -> None:
    written = write(tmp_path / "m.gguf", architecture, tokenizer_metadata, {})
    checkpoint = find_checkpoint(str(written.path))
    options = LoadOptions(dtype="float32", device="cpu", engine=engine)
    loaded = load_network(checkpoint, options)
    assert loaded.engine == engine
    state = loaded.network.new_state()
    state.prefill(Prompt.of(TOKENS))
    with torch.no_grad():
        expected = written.model(torch.tensor([TOKENS])).logits[0, -1]
    assert torch.allclose(state.extend([TOKENS[-1]], [-1])[0], expected, atol=2e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_file_gives_the_config_of_its_model(
    tmp_path: Path, tokenizer_metadata: dict[str, Any], architecture: str
) -> None:
    written = write(tmp_path / "m.gguf", architecture, tokenizer_metadata, {})
    found = config_of_transformers(find_checkpoint(str(written.path)).config).to_dict()
    expected = written.model.config.to_dict() | {"architectures": None, "dtype": "float32"}
    expected |= {"head_dim": expected.get("head_dim") or 16}
    assert found == expected


def test_all_families_are_tested() -> None:
    assert CONFIGS.keys() == FAMILIES.keys()


def test_a_size_that_is_missing_is_told(tmp_path: Path, tokenizer_metadata: dict[str, Any]) -> None:
    differing = {"qwen2.attention.head_count_kv": [2, 1]}
    written = write(tmp_path / "m.gguf", "qwen2", tokenizer_metadata, differing)
    with pytest.raises(LoadError, match=r"layers differ in attention\.head_count_kv"):
        find_checkpoint(str(written.path))


def test_layers_of_gemma3_alternate_as_llama_cpp_takes_them_to(
    tmp_path: Path, tokenizer_metadata: dict[str, Any]
) -> None:
    def kinds(**stated: object) -> list[str]:
        changes = {f"gemma3.{key}": value for key, value in stated.items()}
        path = write(tmp_path / "m.gguf", "gemma3", tokenizer_metadata, changes).path
        return find_checkpoint(str(path)).config.layer_types

    pattern = "attention.sliding_window_pattern"
    local, full = "sliding_attention", "full_attention"
    assert kinds() == [local, full]
    assert kinds(**{pattern: 1}) == [full, full]
    assert kinds(**{"attention.sliding_window": 0, pattern: 1}) == [full, full]
    with pytest.raises(LoadError, match="sliding_window_pattern = 0"):
        kinds(**{pattern: 0})
    with pytest.raises(LoadError, match=r"layers differ in attention\.sliding_window_pattern"):
        kinds(**{pattern: [True, False]})


def test_the_bases_of_gemma3_are_those_of_the_file(
    tmp_path: Path, tokenizer_metadata: dict[str, Any]
) -> None:
    stated = {
        "gemma3.rope.freq_base_swa": 500.0,
        "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.scaling.factor": 8.0,
    }
    path = write(tmp_path / "m.gguf", "gemma3", tokenizer_metadata, stated).path
    rope = find_checkpoint(str(path)).config.rope_parameters
    assert rope == {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    }


@pytest.mark.parametrize("stated", ["final_logit_softcapping", "attn_logit_softcapping"])
def test_caps_of_gemma3_are_refused(
    tmp_path: Path, tokenizer_metadata: dict[str, Any], stated: str
) -> None:
    changes = {f"gemma3.{stated}": 30.0}
    path = write(tmp_path / "m.gguf", "gemma3", tokenizer_metadata, changes).path
    with pytest.raises(LoadError, match=f"it states {stated} = 30"):
        find_checkpoint(str(path))


@pytest.mark.parametrize("window", [8, 0])
def test_a_window_is_that_of_the_file(
    tmp_path: Path, tokenizer_metadata: dict[str, Any], window: int
) -> None:
    stated = {"mistral.attention.sliding_window": window}
    written = write(tmp_path / "m.gguf", "mistral", tokenizer_metadata, stated)
    assert find_checkpoint(str(written.path)).config.sliding_window == (window or None)


@pytest.mark.parametrize("engine", ["native", "generic"])
def test_factors_of_rotary_pairs_reach_both_engines(
    tmp_path: Path, tokenizer_metadata: dict[str, Any], engine: Any
) -> None:
    factors = np.linspace(1, 8, 8).astype(np.float32)
    path = write(tmp_path / "m.gguf", "qwen2", tokenizer_metadata, {}, factors).path
    model = write(tmp_path / "n.gguf", "qwen2", tokenizer_metadata, {}).model
    rotary = model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq / torch.from_numpy(factors)
    options = LoadOptions(dtype="float32", device="cpu", engine=engine)
    state = load_network(find_checkpoint(str(path)), options).network.new_state()
    state.prefill(Prompt.of(TOKENS))
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0, -1]
    assert torch.allclose(state.extend([TOKENS[-1]], [-1])[0], expected, atol=2e-4)


@pytest.mark.parametrize("factors", [np.ones(5, np.float32), np.zeros(8, np.float32)])
def test_factors_that_are_none_or_of_another_number_are_refused(
    tmp_path: Path, tokenizer_metadata: dict[str, Any], factors: np.ndarray
) -> None:
    path = write(tmp_path / "m.gguf", "qwen2", tokenizer_metadata, {}, factors).path
    with pytest.raises(LoadError, match=r"with 5 factors|that are no factors"):
        load_network(find_checkpoint(str(path)), LoadOptions(engine="native", device="cpu"))


def logits_of(network: TreeNetwork) -> torch.Tensor:
    state = network.new_state()
    state.prefill(Prompt.of(TOKENS))
    return state.extend([TOKENS[-1]], [-1])[0]


@pytest.mark.parametrize("dtype", ["auto", "stored"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0"])
@pytest.mark.parametrize("architecture", ["gemma3", "llama", "qwen2", "phi3"])
def test_a_packed_file_runs_in_its_own_bits(
    tmp_path: Path, tokenizer_metadata: dict[str, Any], architecture: str, kind: str, dtype: Any
) -> None:
    path = write(tmp_path / "m.gguf", architecture, tokenizer_metadata, {}, kind=kind).path
    checkpoint = find_checkpoint(str(path))
    loaded = load_network(checkpoint, LoadOptions(dtype=dtype, device="cpu"))
    exact = load_network(checkpoint, LoadOptions(dtype="float32", device="cpu"))
    assert (loaded.engine, loaded.dtype, exact.dtype) == ("native", "stored", "float32")
    assert loaded.num_bytes < exact.num_bytes / (2 if kind == "Q8_0" else 3)
    assert f"{kind} in {kind[1]} bits" in loaded.description["formats"]
    assert "rounded to 8 bits" in loaded.description["activations"]
    error = logits_of(loaded.network) - logits_of(exact.network)
    assert error.norm() / logits_of(exact.network).norm() < 0.2  # wrong weights: 1


def test_a_hybrid_that_is_grafted_onto_a_packed_file_keeps_its_bits(
    tmp_path: Path, tokenizer_metadata: dict[str, Any]
) -> None:
    path = write(tmp_path / "m.gguf", "llama", tokenizer_metadata, {}, kind="Q4_1").path
    base = find_checkpoint(str(path)).weights
    assert isinstance(base, Weights)
    config = GraniteMoeHybridConfig(
        **SIZES,
        shared_intermediate_size=SIZES["intermediate_size"],
        layer_types=["mamba", "attention"],
        position_embedding_type="rope",
        num_local_experts=0,
        num_experts_per_tok=0,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=16,
        mamba_expand=1,
    )
    torch.manual_seed(0)
    mixers = GraniteMoeHybridForCausalLM(config).model.layers[0].mamba.state_dict()
    own = {f"model.layers.0.mamba.{name}": tensor for name, tensor in mixers.items()}
    weights = grafted_weights({"model_type": config.model_type}, own, base, "here")
    assert describe_formats(weights.entries) == "11 Q4_1 in 4 bits; 2 float32 in 8 bits"
    sizes = HybridConfig.from_hf(config)
    exact = CpuHybrid(sizes, weights)
    stored = CpuHybrid(sizes, kept_packed(weights), torch.int8)
    assert stored.num_bytes < exact.num_bytes / 3
    error = logits_of(stored) - logits_of(exact)
    assert 0 < error.norm() / logits_of(exact).norm() < 0.2  # wrong weights: 1
    check_network(stored, num_trials=1, tolerance=0)


def test_the_hybrid_of_the_package_runs_in_the_bits_of_the_default_target() -> None:
    checkpoint = find_checkpoint(HYBRID)
    assert isinstance(checkpoint.weights, Weights)
    assert keeps_integers(checkpoint, LoadOptions(device="cpu"), torch.device("cpu"))
    assert "Q4_1 in 4 bits; 12 float16" in describe_formats(checkpoint.weights.entries)
    assert weight_bytes(checkpoint, None) < 0.4 * weight_bytes(checkpoint, torch.float16)


def test_the_bits_of_a_file_are_for_the_native_engine(
    tmp_path: Path, tokenizer_metadata: dict[str, Any]
) -> None:
    path = write(tmp_path / "m.gguf", "qwen2", tokenizer_metadata, {}, kind="Q8_0").path
    options = LoadOptions(dtype="stored", device="cpu", engine="generic")
    with pytest.raises(UnsupportedModelError, match="stored weights exist in the native CPU"):
        load_network(find_checkpoint(str(path)), options)
    generic = LoadOptions(device="cpu", engine="generic")
    assert load_network(find_checkpoint(str(path)), generic).dtype == "float32"


def test_floats_of_a_file_stay_what_they_are(
    tmp_path: Path, tokenizer_metadata: dict[str, Any]
) -> None:
    path = write(tmp_path / "m.gguf", "qwen2", tokenizer_metadata, {}, kind="F16").path
    loaded = load_network(find_checkpoint(str(path)), LoadOptions(dtype="stored", device="cpu"))
    assert loaded.dtype == "float16"
    assert "formats" not in loaded.description


def test_a_packed_file_that_does_not_fit_is_told(
    tmp_path: Path, tokenizer_metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.gguf", "qwen2", tokenizer_metadata, {}, kind="Q8_0").path
    monkeypatch.setattr("treesnake.loading.memory.free_bytes", lambda _device: 10_000)
    with pytest.raises(LoadError, match=r"GB as it is stored, and 0\.00 GB are free"):
        load_network(find_checkpoint(str(path)), LoadOptions(device="cpu"))


@pytest.mark.parametrize("architecture", ["gemma3", "llama", "phi3"])
def test_a_file_of_more_than_4_bits_drafts_for_itself(
    tmp_path: Path, tokenizer_metadata: dict[str, Any], architecture: str
) -> None:
    path = str(write(tmp_path / "m.gguf", architecture, tokenizer_metadata, {}, kind="Q8_0").path)
    plain, drafted = (
        SpeculativeDecoder.from_pretrained(path, drafter, device="cpu", search=StaticSearch(shape))
        for drafter, shape in (("none", chain(0)), ("self", chain(3)))
    )
    found = drafted.generate(TOKENS, max_new_tokens=24)
    assert found.token_ids == plain.generate(TOKENS, max_new_tokens=24).token_ids
    assert found.mean_tokens_per_step > 1.2


def test_a_file_of_4_bits_has_none_to_spare(
    tmp_path: Path, tokenizer_metadata: dict[str, Any]
) -> None:
    path = str(write(tmp_path / "m.gguf", "qwen2", tokenizer_metadata, {}, kind="Q4_0").path)
    with pytest.raises(UnsupportedModelError, match="have about 4 bits"):
        SpeculativeDecoder.from_pretrained(path, "self", device="cpu")


def test_only_integers_of_a_file_may_round_more_than_floats(
    tmp_path: Path, tokenizer_metadata: dict[str, Any]
) -> None:
    path = str(write(tmp_path / "m.gguf", "qwen2", tokenizer_metadata, {}, kind="Q8_0").path)
    found: dict[str, str] = {}
    for engine in get_args(EngineName):
        reference = find_reference(path, LoadOptions(device="cpu", engine=engine))
        assert isinstance(reference, Reference)
        found[engine] = reference.rounding
    assert found == {"auto": "stored", "native": "stored", "generic": "float32"}
