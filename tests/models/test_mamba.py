"""Mamba against transformers' MambaForCausalLM on the same weights."""

from typing import Any

import pytest
import torch
import transformers

from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.states.branching import PathSums, StateCopies

VOCAB = 61
BRANCHINGS = [StateCopies, PathSums]


@pytest.fixture(scope="module", params=["plain", "biased"])
def pair(request: pytest.FixtureRequest) -> tuple[Mamba, transformers.MambaForCausalLM]:
    """Our network and transformers', with the same weights."""
    use_bias = request.param == "biased"
    torch.manual_seed(0)
    theirs = transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=VOCAB,
            hidden_size=40,
            num_hidden_layers=3,
            state_size=8,
            time_step_rank=5,
            use_bias=use_bias,
            use_conv_bias=not use_bias,
            tie_word_embeddings=not use_bias,
        )
    ).eval()
    for parameter in theirs.parameters():  # zeros and ones would hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    ours = Mamba(
        MambaConfig(
            vocab_size=VOCAB,
            hidden_size=40,
            num_layers=3,
            state_dim=8,
            time_step_rank=5,
            use_bias=use_bias,
            use_conv_bias=not use_bias,
            tie_embeddings=not use_bias,
        )
    )
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(sum(shape)))


@torch.no_grad()
def test_logits_of_whole_texts_are_transformers_own(
    pair: tuple[Mamba, transformers.MambaForCausalLM],
) -> None:
    ours, theirs = pair
    token_ids = random_tokens(2, 75)
    torch.testing.assert_close(ours(token_ids), theirs(token_ids).logits, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("branching", BRANCHINGS)
def test_stepping_after_a_prompt_is_transformers_own(
    pair: tuple[Mamba, transformers.MambaForCausalLM],
    branching: type[StateCopies] | type[PathSums],
) -> None:
    ours, theirs = pair
    token_ids = random_tokens(1, 50)
    cache = transformers.DynamicCache(config=theirs.config)
    theirs(token_ids[:, :30], cache_params=cache, use_cache=True)
    state = ours.new_state(branching)
    ours.prefill(token_ids[0, :30], state)
    for token in range(30, 50):
        expected = theirs(token_ids[:, token : token + 1], cache_params=cache, use_cache=True)
        logits = ours.extend([int(token_ids[0, token])], [-1], state)
        state.commit([0])
        torch.testing.assert_close(logits, expected.logits[0], rtol=0, atol=1e-4)


def test_greedy_text_is_transformers_own(
    pair: tuple[Mamba, transformers.MambaForCausalLM],
) -> None:
    ours, theirs = pair
    prompt = random_tokens(1, 12)
    generate: Any = theirs.generate
    expected = generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)[0]
    state = ours.new_state()
    ours.prefill(prompt[0, :-1], state)
    tokens = prompt[0].tolist()
    while len(tokens) < len(expected):
        tokens.append(int(ours.extend([tokens[-1]], [-1], state).argmax()))
        state.commit([0])
    assert tokens == expected.tolist()


def test_gradients_are_transformers_own(
    pair: tuple[Mamba, transformers.MambaForCausalLM],
) -> None:
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


def test_half_precision_weights_give_nearly_the_same_logits() -> None:
    torch.manual_seed(0)
    network = Mamba(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_layers=2, state_dim=8))
    token_ids = random_tokens(1, 30)
    expected = network(token_ids)
    half = network.bfloat16()
    torch.testing.assert_close(half(token_ids), expected, rtol=0, atol=0.05)
    state = half.new_state()
    half.prefill(token_ids[0, :-1], state)
    assert state.recurrent.dtype == torch.float32
    logits = half.extend(token_ids[0, -1:], [-1], state)
    torch.testing.assert_close(logits, expected[0, -1:], rtol=0, atol=0.05)
