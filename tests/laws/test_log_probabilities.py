"""Log probabilities are those of plain decoding, whatever is drafted and wherever a text is cut."""

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake import (
    BestFirst,
    LevelWidths,
    Prompt,
    SamplingParams,
    SpeculativeDecoder,
)
from treesnake.constraints import BannedTokens, RepetitionPenalty
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.likelihood import PART
from treesnake.logprobs import TokenLogprobs
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.tree_network import TreeNetwork
from treesnake.pairs import Pair
from treesnake.prompt import PromptInput
from treesnake.protocols import DrafterModel
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, Shape, chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TinyNetwork

VOCAB_SIZE = 29
SHAPES = st.sampled_from([chain(4), LevelWidths((3, 2)), BestFirst(3, 4, 9), OFF])
PROMPTS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=6)


@cache
def network_of(name: str) -> TreeNetwork:
    if name == "toy":
        return TinyNetwork(RecurrentModel(VOCAB_SIZE, seed=2), context_length=400)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=400,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    tensors = {name: tensor * 5 for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    return Transformer(
        TransformerConfig.from_hf(config), tensors, torch.float32, torch.device("cpu")
    )


def decoder(name: str, shape: Shape, *, drafts: bool = True) -> SpeculativeDecoder:
    network = network_of(name)
    drafter: DrafterModel = NetworkDrafterModel(network) if drafts else NoDrafterModel()
    return SpeculativeDecoder(
        Pair(NetworkTargetModel(network), drafter), search=StaticSearch(shape), end_token_ids=[0]
    )


def plainly(name: str, prompt: Sequence[int], new: Sequence[int], k: int) -> list[TokenLogprobs]:
    """What plain decoding, one token after the other, says of tokens that follow a prompt."""
    found: list[TokenLogprobs] = []
    for index, token in enumerate(new):
        text = [*prompt, *new[:index]]
        allowed = BannedTokens(set(range(VOCAB_SIZE)) - {token})
        step = decoder(name, OFF, drafts=False).generate(
            text, max_new_tokens=1, constraints=[allowed], logprobs=k
        )
        found += step.logprobs or ()
    return found


@pytest.mark.parametrize("name", ["toy", "native"])
@given(PROMPTS, SHAPES, st.sampled_from([0.0, 1.0]), st.booleans(), st.integers(0, 3))
@settings(max_examples=6)
def test_each_emitted_token_has_the_log_probability_of_plain_decoding(
    name: str, prompt: list[int], shape: Shape, temperature: float, is_constrained: bool, k: int
) -> None:
    """To the bit in our engine; neither temperature nor constraints have a say."""
    generation = decoder(name, shape).generate(
        prompt,
        SamplingParams(temperature, top_k=9, seed=1),
        max_new_tokens=11,
        constraints=[RepetitionPenalty(1.5), BannedTokens([7])] if is_constrained else (),
        logprobs=k,
    )
    assert generation.logprobs is not None
    assert [token.token_id for token in generation.logprobs] == list(generation.token_ids)
    assert all(len(token.top) == k for token in generation.logprobs)
    for told, expected in zip(
        generation.logprobs, plainly(name, prompt, generation.token_ids, k), strict=True
    ):
        if name == "native":
            assert told == expected
        else:
            assert told.logprob == pytest.approx(expected.logprob, abs=1e-6)


def test_they_end_where_the_text_is_cut() -> None:
    """By an end token, inside a path that was accepted further."""
    generation = decoder("native", chain(4)).generate(
        [3, 1], max_new_tokens=40, logprobs=0, constraints=[BannedTokens(range(2, VOCAB_SIZE))]
    )
    assert generation.token_ids[-1] == 0
    assert len(generation.logprobs or ()) == len(generation.token_ids)


def test_nobody_is_told_what_nobody_asked_for() -> None:
    assert decoder("native", chain(2)).generate([3], max_new_tokens=4).logprobs is None


def test_too_many_are_refused_before_the_first_step() -> None:
    with pytest.raises(InvalidInputError, match="logprobs must be at most 29"):
        decoder("native", chain(2)).stream([3], logprobs=30)


@pytest.mark.parametrize("num_tokens", [1, 2, PART, PART + 1, PART + 2, 2 * PART + 3])
def test_a_text_that_is_there_has_the_log_probabilities_of_its_generation(num_tokens: int) -> None:
    made = decoder("native", chain(3))
    generation = made.generate(
        [4],
        SamplingParams(1.0, seed=3),
        max_new_tokens=max(num_tokens - 1, 1),
        constraints=[BannedTokens([0])],
        logprobs=2,
    )
    text = [4, *generation.token_ids][:num_tokens]
    assert made.score_text(text, logprobs=2) == (generation.logprobs or ())[: num_tokens - 1]


def test_a_session_goes_on_behind_a_text_that_it_scored() -> None:
    made = decoder("native", chain(3))
    session = made.new_session()
    text = [4, 8, 15, 16, 23]
    made.score_text([9, 9, 9], session=session)
    made.score_text(text, session=session)
    going_on = made.generate(text, max_new_tokens=9, session=session)
    assert going_on.token_ids == made.generate(text, max_new_tokens=9).token_ids


def test_texts_that_cannot_be_scored_are_refused() -> None:
    made = decoder("toy", chain(2))
    image = PromptInput({"pixel_values": torch.zeros(1)}, 0, 1)
    with pytest.raises(InvalidInputError, match="brings images"):
        made.score_text(Prompt((1, 2), (image,)))
    with pytest.raises(ContextLengthError, match="the context holds 400"):
        made.score_text([1] * 401)
    with pytest.raises(InvalidInputError, match="not in the vocabulary"):
        made.score_text([1, VOCAB_SIZE])
