"""Mamba and Mamba-2 against the networks of transformers on the same weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space_cpu import to_cpu
from treesnake.prompt import Prompt
from treesnake.states.branching import PathSums, StateCopies

VOCAB = 61

Pair = tuple[Mamba | Mamba2, Any]
"""Our network and transformers', with the same weights."""


def mamba_pair(*, biased: bool) -> Pair:
    sizes = {"vocab_size": VOCAB, "hidden_size": 40, "time_step_rank": 5, **bias_options(biased)}
    config = hf.MambaConfig(
        **sizes, num_hidden_layers=3, state_size=8, tie_word_embeddings=not biased
    )
    ours = MambaConfig(**sizes, num_layers=3, state_dim=8, tie_embeddings=not biased)
    return same_weights(Mamba(ours), hf.MambaForCausalLM(config))


def mamba2_pair(*, biased: bool) -> Pair:
    sizes = {"vocab_size": VOCAB, "hidden_size": 40, "num_heads": 4, "head_dim": 20}
    sizes |= bias_options(biased)
    config = hf.Mamba2Config(
        **sizes,
        num_hidden_layers=3,
        state_size=8,
        n_groups=2,
        chunk_size=32,
        tie_word_embeddings=not biased,
    )
    ours = Mamba2Config(**sizes, num_layers=3, state_dim=8, num_groups=2, tie_embeddings=not biased)
    return same_weights(Mamba2(ours), hf.Mamba2ForCausalLM(config))


def bias_options(biased: bool) -> dict[str, Any]:
    return {"use_bias": biased, "use_conv_bias": not biased}


def same_weights(ours: Mamba | Mamba2, theirs: hf.PreTrainedModel) -> Pair:
    torch.manual_seed(0)
    for parameter in theirs.parameters():  # zeros and ones would hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs.eval()


@pytest.fixture(scope="module", params=["plain", "biased"])
def biased(request: pytest.FixtureRequest) -> bool:
    return request.param == "biased"


@pytest.fixture(scope="module", params=[mamba_pair, mamba2_pair], ids=["mamba", "mamba2"])
def pair(request: pytest.FixtureRequest, biased: bool) -> Pair:
    make_pair: Callable[..., Pair] = request.param
    return make_pair(biased=biased)


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(sum(shape)))


@torch.no_grad()
def test_logits_of_whole_texts_are_transformers_own(pair: Pair) -> None:
    ours, theirs = pair
    token_ids = random_tokens(2, 75)
    torch.testing.assert_close(ours(token_ids), theirs(token_ids).logits, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("branching", [StateCopies, PathSums])
def test_stepping_after_a_prompt_is_transformers_own(
    pair: Pair, branching: type[StateCopies] | type[PathSums]
) -> None:
    ours, theirs = pair
    token_ids = random_tokens(1, 50)
    cache = hf.DynamicCache(config=theirs.config)
    theirs(token_ids[:, :30], cache_params=cache, use_cache=True)
    state = ours.new_state(branching)
    state.prefill(Prompt.of(token_ids[0, :31].tolist()))
    for token in range(30, 50):
        expected = theirs(token_ids[:, token : token + 1], cache_params=cache, use_cache=True)
        logits = state.extend([int(token_ids[0, token])], [-1])
        state.commit([0])
        torch.testing.assert_close(logits, expected.logits[0], rtol=0, atol=1e-4)


def test_greedy_text_is_transformers_own(pair: Pair) -> None:
    ours, theirs = pair
    prompt = random_tokens(1, 12)
    expected = theirs.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)[0]
    state = ours.new_state()
    state.prefill(Prompt.of(prompt[0].tolist()))
    tokens = prompt[0].tolist()
    while len(tokens) < len(expected):
        tokens.append(int(state.extend([tokens[-1]], [-1]).argmax()))
        state.commit([0])
    assert tokens == expected.tolist()


def test_gradients_are_transformers_own(pair: Pair) -> None:
    ours, theirs = pair
    token_ids = random_tokens(2, 40)
    names = [name for name, _ in ours.named_parameters()]
    probe = torch.randn(2, 40, VOCAB, generator=torch.Generator().manual_seed(0))
    grads = torch.autograd.grad((ours(token_ids) * probe).sum(), list(ours.parameters()))
    their_parameters = dict(theirs.named_parameters())
    expected_grads = torch.autograd.grad(
        (theirs(token_ids).logits * probe).sum(), [their_parameters[name] for name in names]
    )
    for grad, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("packed", [False, True], ids=["torch", "packed"])
@pytest.mark.parametrize("branching", [StateCopies, PathSums])
def test_a_limit_of_step_sizes_holds_over_texts_and_not_in_trees(
    packed: bool, branching: type[StateCopies] | type[PathSums]
) -> None:
    """As in transformers, whose stepping ignores it."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_heads": 4, "head_dim": 16}
    limit = (0.01, 0.02)
    theirs: Any = hf.Mamba2ForCausalLM(
        hf.Mamba2Config(
            **sizes, num_hidden_layers=2, state_size=8, n_groups=1, time_step_limit=limit
        )
    ).eval()
    ours = Mamba2(
        Mamba2Config(
            **sizes, num_layers=2, state_dim=8, time_step_limit=limit, tie_embeddings=False
        )
    )
    ours.load_state_dict(theirs.state_dict())
    token_ids = random_tokens(1, 21)
    cache = hf.DynamicCache(config=theirs.config)
    with torch.no_grad():
        theirs(token_ids[:, :20], cache_params=cache, use_cache=True)
        expected = theirs(token_ids[:, 20:], cache_params=cache, use_cache=True).logits[0]
    network = to_cpu(ours) if packed else ours
    state = network.new_state(branching)
    state.prefill(Prompt.of(token_ids[0].tolist()))
    logits = state.extend(token_ids[0, 20:].tolist(), [-1])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("make_pair", [mamba_pair, mamba2_pair], ids=["mamba", "mamba2"])
def test_half_precision_weights_give_nearly_the_same_logits(
    make_pair: Callable[..., Pair],
) -> None:
    network, _ = make_pair(biased=False)
    token_ids = random_tokens(1, 30)
    expected = network(token_ids)
    half = network.bfloat16()
    torch.testing.assert_close(half(token_ids), expected, rtol=0, atol=0.05)
    state = half.new_state()
    state.prefill(Prompt.of(token_ids[0].tolist()))
    assert state.memory.recurrent.dtype == torch.float32
    logits = state.extend(token_ids[0, -1:].tolist(), [-1])
    torch.testing.assert_close(logits, expected[0, -1:], rtol=0, atol=0.05)
