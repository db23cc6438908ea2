"""Models of two parts: mixers in a folder, everything else in a model of a package."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from treesnake import SpeculativeDecoder
from treesnake.errors import LoadError
from treesnake.loading.checkpoint import HYBRID, find_checkpoint
from treesnake.loading.grafts import grafted_weights
from treesnake.loading.pretrained import load_pretrained
from treesnake.models.weights import Weights, open_weights

SIZES = {
    "vocab_size": 40,
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "tie_word_embeddings": True,
}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def granite(mixers: tuple[int, ...]) -> Any:
    torch.manual_seed(1)
    layers, heads = range(SIZES["num_hidden_layers"]), SIZES["num_attention_heads"]
    head_dim = SIZES["hidden_size"] // heads
    config = GraniteMoeHybridConfig(
        **SIZES,
        shared_intermediate_size=SIZES["intermediate_size"],
        position_embedding_type="rope",
        attention_multiplier=head_dim**-0.5,
        num_local_experts=0,
        num_experts_per_tok=0,
        layer_types=["linear_attention" if n in mixers else "full_attention" for n in layers],
        mamba_n_heads=heads,
        mamba_n_groups=heads,
        mamba_d_state=head_dim,
        mamba_d_head=head_dim,
        mamba_expand=1,
        mamba_chunk_size=4,
    )
    return GraniteMoeHybridForCausalLM(config).eval()


@pytest.fixture
def base(tmp_path: Path) -> tuple[LlamaForCausalLM, Weights]:
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    llama.save_pretrained(tmp_path)
    return llama, open_weights(tmp_path)


def read(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: weights[name] for name in weights}


@torch.no_grad()
def test_without_a_mixer_the_hybrid_is_the_llama(base: tuple[LlamaForCausalLM, Weights]) -> None:
    llama, weights = base
    hybrid = granite(())
    found = grafted_weights({"model_type": "granitemoehybrid"}, {}, weights, "here")
    unread = hybrid.load_state_dict(read(found), strict=False)
    assert (unread.missing_keys, unread.unexpected_keys) == (["lm_head.weight"], [])
    torch.testing.assert_close(hybrid(TOKENS).logits, llama(TOKENS).logits)


@torch.no_grad()
def test_mixers_of_the_folder_take_the_place_of_attentions(
    base: tuple[LlamaForCausalLM, Weights],
) -> None:
    llama, weights = base
    hybrid = granite((1,))
    own = {name: t for name, t in hybrid.state_dict().items() if ".mamba." in name}
    found = grafted_weights({"model_type": "granitemoehybrid"}, own, weights, "here")
    unread = hybrid.load_state_dict(read(found), strict=False)
    assert (unread.missing_keys, unread.unexpected_keys) == (["lm_head.weight"], [])
    name = "model.layers.1.shared_mlp.input_linear.weight"
    assert found.rows(name, 49, 52).equal(found[name][49:52])
    mlp: Any = llama.model.layers[1].mlp
    assert found[name].equal(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
    assert found.num_bytes == sum(tensor.nbytes for tensor in read(found).values())


def test_what_is_no_graft_is_refused(base: tuple[LlamaForCausalLM, Weights]) -> None:
    with pytest.raises(LoadError, match="'bamba'"):
        grafted_weights({"model_type": "bamba"}, {}, base[1], "here")
    own = {"model.norm.weight": torch.ones(36)}
    with pytest.raises(LoadError, match=r"model\.norm\.weight, which belongs to the model"):
        grafted_weights({"model_type": "granitemoehybrid"}, own, base[1], "here")


def test_only_the_default_target_is_grafted_onto(tmp_path: Path) -> None:
    fields = {"model_type": "granitemoehybrid", "grafted_onto": "gpt-5"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match="grafted onto 'gpt-5', and only 'smollm2'"):
        find_checkpoint(str(tmp_path))


def test_the_hybrid_by_its_name_says_what_transformers_makes_it_say() -> None:
    decoder = SpeculativeDecoder.from_pretrained(HYBRID, search="chain(3)", dtype="float32")
    question = [{"role": "user", "content": "Repeat: one two one two one two"}]
    prompt = list(decoder.encode(question).token_ids)
    model: Any = load_pretrained(HYBRID).model
    assert any(kind == "linear_attention" for kind in model.config.layer_types)
    theirs = model.generate(
        torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    generation = decoder.generate(question, max_new_tokens=8)
    assert list(generation.token_ids) == theirs[0, len(prompt) :].tolist()
    assert generation.num_drafted > 0
