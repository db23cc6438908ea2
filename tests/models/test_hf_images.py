"""Vision-language models: what is said of an image must hold behind it, before it and between."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from treesnake.continuation import continue_text
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.errors import InvalidInputError, UnsupportedModelError
from treesnake.models import hf_images, hf_passes, hf_probe
from treesnake.models.hf_attention import HfAttention, HfAttentionState
from treesnake.models.hf_hybrid import HfHybrid, HybridState
from treesnake.models.hf_images import VERIFIED_VISION
from treesnake.models.hf_network import hf_network
from treesnake.models.tree_network import Part, reads_inputs
from treesnake.prompt import Prompt, PromptInput
from treesnake.sampling import SamplingParams
from treesnake.search.static import StaticSearch
from treesnake.shape import chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import check_network
from treesnake.testing.vision import (
    FAMILIES,
    HYBRID_FAMILIES,
    IMAGE_TOKEN,
    TILED_FAMILIES,
    prompt_with,
    tiny_vision_model,
)

BEFORE, BETWEEN, BEHIND = [5, 17, 2], [33, 8], [41, 12, 27]
TOKENS = [50, 1, 2, 3, 1, 9, 4]
PARENTS = [-1, 0, 0, 1, 1, 2, 4]
PATHS = {3: [0, 1, 3], 5: [0, 2, 5], 6: [0, 1, 4, 6]}

per_family = pytest.mark.parametrize("family", sorted(VERIFIED_VISION))


@cache
def model_of(family: str) -> PreTrainedModel:
    return tiny_vision_model(family)


@cache
def network_of(family: str) -> HfAttention | HfHybrid:
    network = hf_network(model_of(family))
    assert isinstance(network, HfHybrid if family in HYBRID_FAMILIES else HfAttention)
    return network


def prompt_of(family: str, *parts: Any) -> Prompt:
    return prompt_with(model_of(family), *parts)


def filled(family: str, prompt: Prompt) -> HfAttentionState | HybridState:
    state = network_of(family).new_state()
    state.prefill(prompt)
    return state


def close(actual: Tensor, expected: Tensor) -> None:
    """Experts and states that are committed at once differ from step by step by some 1e-4."""
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)


def arguments(family: str, prompt: Prompt) -> dict[str, Tensor]:
    """Returns what transformers is called with for a prompt."""
    images = network_of(family).images
    assert images is not None
    names = prompt.inputs[0].tensors
    axis = 1 if family in TILED_FAMILIES else 0
    joined = {
        name: torch.cat(
            [each.tensors[name] for each in prompt.inputs],
            dim=axis if name == "pixel_values" else 0,
        )
        for name in names
    }
    input_ids = torch.tensor([prompt.token_ids])
    return {"input_ids": input_ids, **joined, **images.token_types(prompt)}


@torch.no_grad()
def plain(family: str, prompt: Prompt, *more: int) -> Tensor:
    """Returns the logits behind a prompt without its last token, and further tokens."""
    whole = Prompt((*prompt.token_ids[:-1], *more), inputs=prompt.inputs)
    return model_of(family)(use_cache=False, **arguments(family, whole)).logits[0, -1]


@per_family
def test_a_tree_behind_images_is_scored_as_its_paths_are(family):
    prompt = prompt_of(family, BEFORE, 0, BETWEEN, 1, BEHIND)
    state = filled(family, prompt)
    logits = state.extend(TOKENS, PARENTS)
    for node, path in PATHS.items():
        close(logits[node], plain(family, prompt, *(TOKENS[step] for step in path)))
    state.commit(PATHS[6])
    path = [TOKENS[step] for step in PATHS[6]]
    close(state.extend([9], [-1])[0], plain(family, prompt, *path, 9))


@per_family
def test_the_text_is_that_of_transformers_and_a_target_that_drafts_sees_the_image(family):
    prompt = prompt_of(family, BEFORE, 0, BEHIND)
    network = network_of(family)
    target, drafter = (
        NetworkTargetModel(network).new_session(),
        NetworkDrafterModel(network).new_session(),
    )
    search = StaticSearch(chain(3)).new_session()
    steps = list(
        continue_text(
            target, drafter, prompt, SamplingParams(), search=search, max_new_tokens=12
        ).steps
    )
    token_ids = [token for step in steps for token in step.emitted]
    with torch.no_grad():
        expected = model_of(family).generate(
            **arguments(family, prompt), max_new_tokens=12, do_sample=False
        )
    assert token_ids == expected[0, len(prompt) :].tolist()
    assert [len(step.emitted) for step in steps] == [1, 4, 4, 3]


@per_family
def test_two_images_with_equal_placeholders_are_different_texts(family):
    first, second = (prompt_of(family, BEFORE, seed, BEHIND) for seed in (0, 1))
    assert first.token_ids == second.token_ids
    state = filled(family, first)
    seen = state.extend(TOKENS, PARENTS)
    state.prefill(second)
    logits = state.extend(TOKENS, PARENTS)
    assert torch.equal(logits, filled(family, second).extend(TOKENS, PARENTS))
    assert (logits - seen).abs().max() > 0.1


@per_family
def test_an_image_runs_through_its_tower_once_in_a_session(family, monkeypatch):
    model, num_images = model_of(family).base_model, 0
    read = model.get_image_features

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal num_images
        num_images += 1
        return read(*arguments, **options)

    first = prompt_of(family, BEFORE, 0, BEHIND)
    answered = (*first.token_ids, *BETWEEN)
    second = prompt_of(family, BEFORE, 0, [*BEHIND, *BETWEEN], 1, BEHIND)
    assert second.token_ids[: len(answered)] == answered
    expected = filled(family, second).extend(TOKENS, PARENTS)
    monkeypatch.setattr(model, "get_image_features", counted)
    state = filled(family, first)
    state.extend([BEHIND[-1], *BETWEEN], [-1, 0, 1])
    state.commit([0, 1, 2])
    assert num_images == 1
    state.prefill(second)
    assert num_images == 2
    close(state.extend(TOKENS, PARENTS), expected)
    state.prefill(first)
    assert num_images == 2
    close(state.extend([9], [-1])[0], plain(family, first, 9))
    edited = prompt_of(family, BEFORE[:1], 0, BEHIND)
    state.prefill(edited)
    close(state.extend([9], [-1])[0], plain(family, edited, 9))


@per_family
def test_texts_with_and_without_images_share_a_pass_and_nothing_else(family):
    network = network_of(family)
    prompts = [
        prompt_of(family, BEFORE, 0, BEHIND),
        prompt_of(family, BEFORE, 1, BETWEEN, 0, BEHIND),
        Prompt((7,)),
        prompt_of(family, [*BEFORE, *BETWEEN, *BEHIND]),
    ]
    states = [filled(family, prompt) for prompt in prompts]
    with torch.no_grad():  # leaves positions of its last text behind in some models
        model_of(family).generate(**arguments(family, prompts[0]), max_new_tokens=2)
    sizes = (3, 7, 1, 5)
    parts = [
        Part(state, TOKENS[:size], PARENTS[:size])
        for state, size in zip(states, sizes, strict=True)
    ]
    together = network.extend_all(parts)
    for prompt, logits, size in zip(prompts, together, sizes, strict=True):
        close(logits, filled(family, prompt).extend(TOKENS[:size], PARENTS[:size]))


@per_family
def test_a_snapshot_brings_a_text_with_an_image_back(family):
    prompt = prompt_of(family, BEFORE, 0, BEHIND)
    state = filled(family, prompt)
    snapshot = state.snapshot()
    expected = state.extend(TOKENS, PARENTS)
    for each in (state, network_of(family).new_state()):
        each.restore(snapshot)
        assert torch.equal(each.extend(TOKENS, PARENTS), expected)


@per_family
def test_long_prompts_run_in_parts_that_cut_no_image(family, monkeypatch):
    prompt = prompt_of(family, BEFORE * 7, 0, BETWEEN, 1, BEHIND * 7)
    at_once = filled(family, prompt).extend(TOKENS, PARENTS)
    monkeypatch.setattr(hf_passes, "PREFILL_BYTES", 0)
    close(filled(family, prompt).extend(TOKENS, PARENTS), at_once)


@pytest.mark.parametrize("family", ["gemma3", "llava", "qwen2_5_vl"])
def test_it_is_a_network_for_text(family):
    assert reads_inputs(network_of(family))
    check_network(network_of(family), num_trials=1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_either_attention_reads_images(family, attention):
    model = tiny_vision_model(family, attention=attention)
    prompt = prompt_with(model, BEFORE, 0, BEHIND)
    state = hf_network(model).new_state()
    state.prefill(prompt)
    close(state.extend([9], [-1])[0], plain(family, prompt, 9))


def test_an_image_that_was_interrupted_is_read_again(monkeypatch):
    prompt = prompt_of("qwen2_vl", BEFORE, 0, BETWEEN, 1, BEHIND)
    state = network_of("qwen2_vl").new_state()
    model = model_of("qwen2_vl").base_model
    read, images = model.get_image_features, iter(range(9))

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(images) == 1:
            raise KeyboardInterrupt
        return read(*arguments, **options)

    monkeypatch.setattr(model, "get_image_features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        state.prefill(prompt)
    assert state.length == prompt.inputs[1].start
    state.prefill(prompt)
    close(state.extend([9], [-1])[0], plain("qwen2_vl", prompt, 9))


def test_every_family_is_trusted_but_the_one_that_sees_ahead_in_text():
    assert set(FAMILIES) - {"paligemma"} == VERIFIED_VISION
    with pytest.raises(UnsupportedModelError, match="looks ahead"):
        hf_network(tiny_vision_model("paligemma"))


def refusal(family: str, prompt: Prompt) -> str:
    state = network_of(family).new_state()
    with pytest.raises(InvalidInputError) as caught:
        state.prefill(prompt)
    state.prefill(Prompt((5, 7)))
    return str(caught.value)


def test_inputs_that_are_no_images_of_the_model_are_refused():
    prompt = prompt_of("llava", BEFORE, 0, BEHIND)
    image = prompt.inputs[0]
    sound = PromptInput({"input_features": torch.zeros(2)}, image.start, image.num_placeholders)
    assert "takes no input_features" in refusal("llava", Prompt(prompt.token_ids, (sound,)))
    moved = PromptInput(image.tensors, 0, 2)
    assert f"token {IMAGE_TOKEN} for images" in refusal("llava", Prompt(prompt.token_ids, (moved,)))
    short = PromptInput(image.tensors, image.start, image.num_placeholders - 1)
    assert "do not match" in refusal("llava", Prompt(prompt.token_ids, (short,)))
    touching = prompt_of("gemma3", BEFORE, 0, 1, BEHIND)
    assert "no token between them" in refusal("gemma3", touching)


@pytest.fixture
def nobody_verified(monkeypatch) -> None:
    monkeypatch.setattr(hf_images, "VERIFIED_VISION", frozenset())
    monkeypatch.setattr(hf_probe, "_PASSED_WITH_IMAGE", set())


@pytest.mark.usefixtures("nobody_verified")
@pytest.mark.parametrize("family", ["idefics3", "qwen3_vl"])
def test_other_families_are_tried_with_their_first_image(family):
    prompt = prompt_of(family, BEFORE, 0, BETWEEN, 1, BEHIND)
    state = hf_network(model_of(family)).new_state()
    state.prefill(prompt)
    close(state.extend([9], [-1])[0], plain(family, prompt, 9))


@pytest.mark.usefixtures("nobody_verified")
def test_a_family_that_reads_images_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(hf_images, "TWO_WAY_FAMILIES", ("llava",))
    state = hf_network(model_of("llava")).new_state()
    with pytest.raises(UnsupportedModelError, match="behind an image differently"):
        state.prefill(prompt_of("llava", BEFORE, 0, BEHIND))
    state = hf_network(model_of("gemma3")).new_state()
    with pytest.raises(UnsupportedModelError, match="reads types of tokens"):
        state.prefill(prompt_of("gemma3", BEFORE, 0, BEHIND))
