"""Both engines in the target role, on the same weights."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake import Prompt, SpeculativeDecoder, TokenTree
from treesnake.drafters.none import NoDrafterModel
from treesnake.errors import BrokenModelError, ContextLengthError, InvalidInputError
from treesnake.models.hf_attention import HfAttention
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig
from treesnake.pairs import Pair
from treesnake.protocols import TargetModel
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import check_target

VOCAB_SIZE = 31
CONTEXT = 64


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(0, 0.3)
    return model


Engine = Callable[[LlamaForCausalLM], TargetModel]


def native(model: LlamaForCausalLM) -> TargetModel:
    config = TransformerConfig.from_hf(model.config)
    network = Transformer(config, model.state_dict(), torch.float32, torch.device("cpu"))
    return NetworkTargetModel(network)


def generic(model: LlamaForCausalLM) -> TargetModel:
    return NetworkTargetModel(HfAttention(model))


ENGINES = pytest.mark.parametrize("engine", [native, generic])


def test_the_native_engine_keeps_the_promises_of_targets(llama: LlamaForCausalLM) -> None:
    check_target(native(llama))


def test_both_engines_give_the_same_greedy_text(llama: LlamaForCausalLM) -> None:
    texts = {
        SpeculativeDecoder(Pair(engine(llama), NoDrafterModel()))
        .generate([3, 1, 4], max_new_tokens=24)
        .token_ids
        for engine in (native, generic)
    }
    assert len(texts) == 1


@ENGINES
def test_broken_weights_are_refused_with_the_layer(engine: Engine, llama: LlamaForCausalLM) -> None:
    broken = copy.deepcopy(llama)
    broken.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    session = engine(broken).new_session()
    session.prefill(Prompt((1, 2, 3)))
    with pytest.raises(BrokenModelError, match=r"layers?[ .]1\b.*(load|fetch)"):
        session.score(TokenTree.chain([3, 4]))


@ENGINES
def test_a_token_outside_of_the_vocabulary_is_refused(
    engine: Engine, llama: LlamaForCausalLM
) -> None:
    session = engine(llama).new_session()
    with pytest.raises(InvalidInputError, match="token id 31 is not in the vocabulary of 31"):
        session.prefill(Prompt((1, VOCAB_SIZE)))
    session.prefill(Prompt((1, 2)))
    with pytest.raises(InvalidInputError, match="31"):
        session.score(TokenTree.chain([2, VOCAB_SIZE]))


@ENGINES
def test_a_prompt_that_fills_the_context_is_refused(
    engine: Engine, llama: LlamaForCausalLM
) -> None:
    session = engine(llama).new_session()
    with pytest.raises(ContextLengthError, match="the prompt has 64 tokens and the context holds"):
        session.prefill(Prompt((1,) * CONTEXT))


@ENGINES
def test_a_tree_beyond_the_context_is_refused(engine: Engine, llama: LlamaForCausalLM) -> None:
    session = engine(llama).new_session()
    session.prefill(Prompt((1,) * (CONTEXT - 2)))
    session.score(TokenTree.chain([1, 2, 3]))
    with pytest.raises(ContextLengthError, match=r"reaches token 65 .* the context holds 64"):
        session.score(TokenTree.chain([1, 2, 3, 4]))
