"""Transformers draft: our own network and those of transformers, with and without a window."""

from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.chance import TorchRng
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.window import WindowedDrafter, first_seen
from treesnake.errors import InvalidInputError
from treesnake.generate import generate
from treesnake.models.hf_attention import HfAttention
from treesnake.models.hf_passes import CACHE_ARGUMENTS
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.transformer_layers import restrict_output
from treesnake.prompt import Prompt
from treesnake.protocols import DrafterModel
from treesnake.sampling import SamplingParams
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, BestFirst, LevelWidths, Shape, chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TinyNetwork, check_drafter

VOCAB_SIZE = 61
PROMPT = Prompt((5, 17, 60, 2, 33, 8, 8, 41, 12, 27, 3, 50))
GREEDY = SamplingParams()


@pytest.fixture
def native(tiny_model) -> Transformer:
    model = tiny_model("llama", seed=1)
    config = TransformerConfig.from_hf(model.config)
    return Transformer(config, model.state_dict(), torch.float32, torch.device("cpu"))


def continued(
    target: NetworkTargetModel, drafter: DrafterModel, shape: Shape, num_new: int
) -> list[int]:
    steps = generate(
        target.new_session(),
        drafter.new_session(),
        PROMPT,
        search=StaticSearch(shape),
        params=GREEDY,
        rng=TorchRng(0),
        max_length=len(PROMPT) + num_new,
    )
    return [token for step in steps for token in step.emitted]


def rows_seen(model: Any) -> list[int]:
    """Notes how many rows the cache has before each forward pass of a transformers model."""
    rows: list[int] = []

    def note(module: Any, arguments: Any, options: Any) -> None:
        cache = next(options[name] for name in CACHE_ARGUMENTS if name in options)
        rows.append(cache.get_seq_length())

    model.register_forward_pre_hook(note, with_kwargs=True)
    return rows


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_draft_vocabulary_takes_its_rows_of_the_output_layer(dtype, tied, tiny_model):
    kept = torch.tensor([3, 8, 41, 60])
    model = tiny_model("llama", seed=1, tie_word_embeddings=tied)
    config, tensors = TransformerConfig.from_hf(model.config), model.state_dict()
    restricted_tensors, restricted_config = restrict_output(tensors, config, kept)
    device = torch.device("cpu")
    whole = Transformer(config, tensors, dtype, device)
    restricted = Transformer(restricted_config, restricted_tensors, dtype, device)
    assert torch.equal(first_logits(restricted), first_logits(whole)[:, kept])


def first_logits(network: Transformer) -> Float[Tensor, "1 kept"]:
    state = network.new_state()
    state.prefill(PROMPT)
    return state.extend([9], [-1])


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_a_transformers_model_is_a_drafter(family, window, tiny_model):
    network = HfAttention(tiny_model(family))
    check_drafter(NetworkDrafterModel(network, window=window), VOCAB_SIZE, num_steps=1)


@pytest.mark.parametrize("window", [None, 5])
def test_our_own_network_is_a_drafter(window, native):
    check_drafter(NetworkDrafterModel(native, window=window), VOCAB_SIZE, num_steps=3)


@pytest.mark.parametrize("window", [2, 3, 6, 7])
def test_any_drafter_can_have_a_window(window):
    class Model:
        def new_session(self) -> WindowedDrafter:
            return WindowedDrafter(
                NetworkDrafterModel(TinyNetwork(RecurrentModel(7))).new_session(), window
            )

    check_drafter(Model(), 7)


@pytest.mark.parametrize("shape", [chain(3), LevelWidths((3, 2)), BestFirst(3, 3, 6)], ids=str)
def test_greedy_output_is_the_targets_own(shape, native, tiny_model):
    target = NetworkTargetModel(HfAttention(tiny_model("llama")))
    expected = continued(target, NetworkDrafterModel(native), OFF, 30)
    for window in (None, 4):
        drafter = NetworkDrafterModel(native, window=window)
        assert continued(target, drafter, shape, 30) == expected


def test_a_target_that_drafts_for_itself_is_always_right(tiny_model):
    model = tiny_model("llama")
    session = NetworkDrafterModel(HfAttention(model)).new_session()
    steps = generate(
        NetworkTargetModel(HfAttention(model)).new_session(),
        session,
        PROMPT,
        search=StaticSearch(chain(3)),
        params=GREEDY,
        rng=TorchRng(0),
        max_length=len(PROMPT) + 40,
    )
    assert [len(step.emitted) for step in steps] == [1, *[4] * 9, 3]


def test_a_drafter_with_a_shorter_context_drafts_on(tiny_model):
    """Learned positions end at 16, of which 4 are kept for trees; the text goes on to 72."""
    target = NetworkTargetModel(HfAttention(tiny_model("llama")))
    model = tiny_model("gpt2", max_position_embeddings=16)
    drafter = NetworkDrafterModel(HfAttention(model))
    assert (drafter.largest_window, drafter.max_depth) == (12, 4)
    expected = continued(target, drafter, OFF, 60)
    assert continued(target, drafter, chain(9), 60) == expected


def test_a_window_bounds_the_cache(tiny_model):
    target = NetworkTargetModel(HfAttention(tiny_model("llama")))
    model = tiny_model("llama", seed=1)
    rows = rows_seen(model)
    continued(target, NetworkDrafterModel(HfAttention(model), window=8), chain(3), 60)
    assert max(rows) <= 8 + 3
    rows.clear()
    continued(target, NetworkDrafterModel(HfAttention(model)), chain(3), 60)
    assert max(rows) > 60


def test_a_draft_in_a_window_is_that_of_a_text_that_begins_there(tiny_model):
    network = HfAttention(tiny_model("llama"))
    text = PROMPT.token_ids
    start = first_seen(len(text) - 1, 6)
    drafts = []
    for model, tokens in [
        (NetworkDrafterModel(network, window=6), text),
        (NetworkDrafterModel(network), text[start:]),
    ]:
        session = model.new_session()
        session.prefill(Prompt(tokens))
        drafts.append(session.draft(text[-1], LevelWidths((2, 2)), GREEDY, TorchRng(0)).tree.tokens)
    assert drafts[0] == drafts[1]


@pytest.mark.parametrize("window", range(2, 10))
def test_a_window_moves_by_half_its_length(window):
    starts = [first_seen(num_tokens, window) for num_tokens in range(60)]
    stride = -(-window // 2)
    assert set(starts) == set(range(0, starts[-1] + 1, stride))
    seen = [num_tokens - start for num_tokens, start in enumerate(starts)]
    assert seen[: window + 1] == [*range(window + 1)]
    assert all(window - stride < number <= window for number in seen[window:])


@pytest.mark.parametrize(
    ("window", "reason"), [(1, "at least 2 tokens"), (73, "can look at 72 tokens at most")]
)
def test_a_window_that_cannot_be_is_refused(window, reason, tiny_model):
    with pytest.raises(InvalidInputError, match=reason):
        NetworkDrafterModel(HfAttention(tiny_model("llama")), window=window)


def test_the_window_stays_while_nothing_is_drafted():
    inner = NetworkDrafterModel(TinyNetwork(RecurrentModel(7))).new_session()
    prefilled = []
    prefill = inner.prefill
    inner.prefill = lambda prompt: (prefilled.append(prompt), prefill(prompt))
    session = WindowedDrafter(inner, 4)
    session.prefill(Prompt((1, 2, 3)))
    for token in (3, 4, 5, 6, 1, 2, 3, 4):
        session.draft(token, OFF, GREEDY, TorchRng(0))
        session.commit([token])
    assert len(prefilled) == 1
    session.draft(5, chain(2), GREEDY, TorchRng(0))
    assert [prompt.token_ids for prompt in prefilled[1:]] == [(1, 2, 3, 4, 5)]


def test_a_recurrent_drafter_reads_the_end_of_a_prompt_and_the_whole_answer():
    """Behind the same tokens it drafts the same, however many came before them or after."""
    windowed = NetworkDrafterModel(TinyNetwork(RecurrentModel(7)), window=4).new_session()
    whole = NetworkDrafterModel(TinyNetwork(RecurrentModel(7))).new_session()
    prompt, answer = [3, 5, 1, 2, 6, 4, 2, 1, 5], [5, 6, 2, 4, 1, 3, 6]
    windowed.prefill(Prompt(tuple(prompt)))
    whole.prefill(Prompt(tuple(prompt[4:])))  # the first multiple of half a window that leaves four
    for token in answer:
        drafts = [
            session.draft(token, chain(3), GREEDY, TorchRng(0)) for session in (windowed, whole)
        ]
        assert drafts[0].tree == drafts[1].tree
        for session in (windowed, whole):
            session.commit([token])
