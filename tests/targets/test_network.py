"""Unmodified transformers models score trees, commit paths and speak as `generate` does."""

import random
import threading
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from treesnake.chance import TorchRng
from treesnake.draft import Draft
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.generate import generate
from treesnake.models.hf_attention import HfAttention
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.search.static import StaticSearch
from treesnake.shape import BestFirst, LevelWidths
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import AttentionModel, TinyNetwork, check_target
from treesnake.tree import TokenTree, TreeBuilder

LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {},
    "gemma3_text": {"layer_types": LAYERS},
    "gpt2": {},
    "gpt_neox": {},
    "llama": {},
    "mistral": {},
    "mixtral": {},
    "olmo2": {},
    "phi3": {},
    "qwen2": {"layer_types": LAYERS, "use_sliding_window": True},
    "qwen3": {"layer_types": LAYERS, "use_sliding_window": True},
    "qwen3_moe": {},
}
VOCAB_SIZE = 61
PROMPT = Prompt((5, 17, 60, 2, 33, 8, 8, 41, 12, 27, 3, 50))


class GuessingDrafter:
    """Knows what the target will say, and puts it among wrong guesses two times out of three."""

    def __init__(self, text: list[int], seed: int = 0) -> None:
        self._text = text
        self._length = 0
        self._chance = random.Random(seed)

    def prefill(self, prompt: Prompt) -> None:
        self._length = len(prompt)

    def draft(self, anchor, shape, params, rng) -> Draft:
        builder = TreeBuilder(anchor)
        node = 0
        for token in self._text[self._length : self._length + min(4, shape.depth)]:
            guesses = [self._chance.randrange(VOCAB_SIZE) for _ in range(2)]
            if self._chance.random() < 2 / 3:
                guesses.insert(self._chance.randrange(3), token)
            children = [builder.add(node, guess) for guess in guesses]
            known = [child for child in children if builder.tokens[child] == token]
            node = known[0] if known else self._chance.choice(children)
        return Draft.chosen(builder.build())

    def commit(self, token_ids, scored=None) -> None:
        self._length += len(token_ids)


def continued(model: NetworkTargetModel, drafter, num_new, shape, prompt=PROMPT) -> list[int]:
    steps = generate(
        model.new_session(),
        drafter,
        prompt,
        search=StaticSearch(shape),
        params=SamplingParams(),
        rng=TorchRng(0),
        max_length=len(prompt) + num_new,
    )
    return [token for step in steps for token in step.emitted]


def generated(model: PreTrainedModel, num_new: int, prompt=PROMPT) -> list[int]:
    output = model.generate(
        torch.tensor([prompt.token_ids]), max_new_tokens=num_new, do_sample=False
    )
    return output[0, len(prompt) :].tolist()


def tokens_run(model: PreTrainedModel) -> list[int]:
    """Notes how many tokens each forward pass embeds from now on."""
    counts: list[int] = []
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, inputs, output: counts.append(output.shape[1]))
    return counts


@pytest.mark.parametrize("family", FAMILIES)
def test_trees_are_scored_as_their_paths_and_commits_are_steps(family, tiny_model):
    check_target(
        NetworkTargetModel(HfAttention(tiny_model(family, **FAMILIES[family]))), num_trials=1
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_output_is_that_of_generate(family, tiny_model):
    model = tiny_model(family, **FAMILIES[family])
    target = NetworkTargetModel(HfAttention(model))
    expected = generated(model, 48)
    guessing = GuessingDrafter([*PROMPT.token_ids, *expected])
    assert continued(target, guessing, 48, LevelWidths((3, 1, 1, 1))) == expected
    strange = NetworkDrafterModel(TinyNetwork(AttentionModel(VOCAB_SIZE)))
    for shape in (LevelWidths((3, 2)), BestFirst(4, 3, 9)):
        assert continued(target, strange.new_session(), 24, shape) == expected[:24]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_eager_attention_scores_trees_too(family, tiny_model):
    model = tiny_model(family, attention="eager", **FAMILIES[family])
    check_target(NetworkTargetModel(HfAttention(model)), num_trials=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["gemma3_text", "gpt_neox", "mistral"])
def test_half_precision_differs_by_rounding_alone(family, dtype, tiny_model):
    """Logits have a standard deviation of about 1.7; rounding to 8 bits costs a tenth of that."""
    model = tiny_model(family, **FAMILIES[family]).to(dtype)
    tolerance = 0.03 if dtype == torch.float16 else 0.25
    check_target(NetworkTargetModel(HfAttention(model)), num_trials=1, tolerance=tolerance)


def test_prefill_runs_only_what_the_state_does_not_hold(tiny_model):
    model = tiny_model("llama")
    session = NetworkTargetModel(HfAttention(model)).new_session()
    counts = tokens_run(model)
    session.prefill(PROMPT)
    session.prefill(Prompt((*PROMPT.token_ids, 4, 9)))
    session.prefill(Prompt((*PROMPT.token_ids[:6], 0, 1, 2, 3)))
    session.prefill(PROMPT)
    session.prefill(PROMPT)
    assert counts == [11, 2, 3, 5]


def test_an_interrupted_step_leaves_the_state_as_it_was(tiny_model):
    model = tiny_model("llama")
    session = NetworkTargetModel(HfAttention(model)).new_session()
    session.prefill(PROMPT)
    tree = TokenTree.of([50, 1, 2], [-1, 0, 0])
    expected = session.score(tree)

    def interrupt(module, inputs):
        raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.score(tree)
    handle.remove()
    assert torch.equal(session.score(tree), expected)


def test_two_threads_generate_at_once(tiny_model):
    model = tiny_model("gemma3_text", **FAMILIES["gemma3_text"])
    target = NetworkTargetModel(HfAttention(model))
    prompts = [PROMPT, Prompt(PROMPT.token_ids[::-1])]
    expected = [generated(model, 40, prompt) for prompt in prompts]
    found: dict[int, list[int]] = {}

    def work(index: int) -> None:
        drafter = GuessingDrafter([*prompts[index].token_ids, *expected[index]])
        shape = LevelWidths((3, 1, 1))
        found[index] = continued(target, drafter, 40, shape, prompts[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[0], found[1]] == expected


def test_a_text_may_fill_the_context_to_the_last_position(tiny_model):
    model = tiny_model("gpt2", max_position_embeddings=24)
    target = NetworkTargetModel(HfAttention(model))
    expected = generated(model, 12)
    guessing = GuessingDrafter([*PROMPT.token_ids, *expected])
    assert continued(target, guessing, 12, LevelWidths((3, 1, 1, 1))) == expected


def test_rotary_positions_that_change_with_length_limit_the_context(tiny_model):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 3.0, **factors}
    model = tiny_model("phi3", original_max_position_embeddings=32, rope_parameters=rope)
    assert NetworkTargetModel(HfAttention(model)).new_session().context_length == 32
    plain = NetworkTargetModel(HfAttention(tiny_model("phi3")))
    assert plain.new_session().context_length == 96


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(InvalidInputError, match="the prompt is empty"):
        Prompt(())


def test_a_prompt_that_fills_the_context_is_refused(tiny_model):
    session = NetworkTargetModel(HfAttention(tiny_model("gpt2"))).new_session()
    with pytest.raises(ContextLengthError, match="96 tokens and the context holds 96"):
        session.prefill(Prompt((1,) * 96))


def test_an_unknown_token_in_a_prompt_is_refused(tiny_model):
    session = NetworkTargetModel(HfAttention(tiny_model("llama"))).new_session()
    with pytest.raises(InvalidInputError, match="token id 61 is not in the vocabulary of 61"):
        session.prefill(Prompt((1, 61)))


def test_an_unknown_token_in_a_tree_is_refused(tiny_model):
    session = NetworkTargetModel(HfAttention(tiny_model("llama"))).new_session()
    session.prefill(PROMPT)
    with pytest.raises(InvalidInputError, match="the tree has token id 61 and the target knows 61"):
        session.score(TokenTree.chain([50, 61]))


def test_a_tree_beyond_the_context_is_refused(tiny_model):
    session = NetworkTargetModel(
        HfAttention(tiny_model("gpt2", max_position_embeddings=14))
    ).new_session()
    session.prefill(PROMPT)
    session.score(TokenTree.chain([50, 1, 2]))
    with pytest.raises(ContextLengthError, match=r"reaches token 15 .* the context holds 14"):
        session.score(TokenTree.chain([50, 1, 2, 3]))
