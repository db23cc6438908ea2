"""Streams of a vision-language model of transformers."""

from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from treesnake import Pair, SamplingParams, SpeculativeDecoder
from treesnake.chance import TorchRng
from treesnake.drafters.image_views import PooledView
from treesnake.drafters.mixture import MixtureDrafterModel, Stream
from treesnake.drafters.none import NoDrafterModel
from treesnake.drafters.weight_rules import ExpectationMaximization, FixedWeights, WeightRule
from treesnake.errors import InvalidInputError, UnsupportedModelError
from treesnake.models.hf_attention import HfAttention
from treesnake.models.hf_pooling import (
    PROJECTORS,
    PooledFeatures,
    pool,
    pooled_features,
    pooled_image,
)
from treesnake.models.tree_network import TreeNetwork
from treesnake.prompt import Prompt
from treesnake.shape import LevelWidths, chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TinyNetwork
from treesnake.testing.vision import prompt_with, tiny_vision_model


@cache
def network_of(seed: int) -> HfAttention:
    return HfAttention(tiny_vision_model("llava", seed=seed))


def network(seed: int = 0) -> HfAttention:
    return network_of(seed)


def llava() -> PreTrainedModel:
    return network().model


def prompt(seed: int = 3) -> Prompt:
    return prompt_with(llava(), [5, 8], seed, [9, 4, 7])


def streams(drafter: TreeNetwork) -> tuple[Stream, ...]:
    return (
        Stream("M", drafter),
        Stream("T", drafter, Prompt.without_inputs),
        Stream("P", drafter, PooledView(drafter)),
    )


def decoder(drafter: TreeNetwork | None, rule: WeightRule | None = None) -> SpeculativeDecoder:
    target = NetworkTargetModel(network())
    if drafter is None:
        return SpeculativeDecoder(Pair(target, NoDrafterModel()))
    mixture = MixtureDrafterModel(streams(drafter), rule or ExpectationMaximization())
    return SpeculativeDecoder(Pair(target, mixture), search="chain(3)")


def test_a_drafter_that_is_the_target_has_every_token_accepted_by_its_stream_with_images() -> None:
    generation = decoder(network(), FixedWeights((1, 0, 0))).generate(prompt(), max_new_tokens=16)
    assert len(generation.steps) == 5


def test_text_is_the_targets_own_in_two_turns() -> None:
    ours, plain = decoder(network(1)), decoder(None)
    session = ours.new_session()
    first = ours.generate(prompt(), max_new_tokens=8, session=session).token_ids
    assert first == plain.generate(prompt(), max_new_tokens=8).token_ids
    longer = prompt_with(llava(), [5, 8], 3, [9, 4, 7, *first, 6], 11, [2])
    second = ours.generate(longer, max_new_tokens=8, session=session)
    assert second.token_ids == plain.generate(longer, max_new_tokens=8).token_ids


def test_streams_share_a_pass_and_draft_what_each_drafts_alone() -> None:
    """Within rounding: weights that are all on one stream give that stream's own draft."""
    drafter = network(1)
    mixed = MixtureDrafterModel(streams(drafter), FixedWeights()).new_session()
    mixed.prefill(prompt())
    draft = mixed.draft(7, LevelWidths((3,)), SamplingParams(1.0), TorchRng(0))
    rows = []
    for stream in streams(drafter):
        alone = MixtureDrafterModel((stream,)).new_session()
        alone.prefill(prompt())
        probs = alone.draft(7, chain(1), SamplingParams(1.0), TorchRng(0)).draft_probs
        assert probs is not None
        rows.append(probs[0])
    assert draft.draft_probs is not None
    assert torch.allclose(draft.draft_probs[0], torch.stack(rows).mean(0), atol=1e-5)
    assert not torch.allclose(rows[0], rows[1], atol=1e-3)
    assert not torch.allclose(rows[0], rows[2], atol=1e-3)


def test_pooled_images_have_a_quarter_of_the_placeholders() -> None:
    view = PooledView(network())
    image = prompt().inputs[0]
    pooled = view(prompt())
    assert pooled.inputs[0].num_placeholders * 4 == image.num_placeholders
    assert pooled.token_ids[:2] == (5, 8)
    assert pooled.token_ids[-3:] == (9, 4, 7)
    assert view(prompt()) == pooled
    assert view(prompt(4)).key != pooled.key


def test_pooled_features_are_projected_means_of_patches() -> None:
    model = llava()
    reader = model.base_model
    tensors = prompt().inputs[0].tensors
    projector = reader.multi_modal_projector
    seen: list[torch.Tensor] = []
    handle = projector.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        reader.get_image_features(**tensors)
        handle.remove()
        patches = seen[0][0].unflatten(0, (4, 4))
        means = torch.stack(
            [
                patches[row : row + 2, column : column + 2].mean((0, 1))
                for row in (0, 2)
                for column in (0, 2)
            ]
        )
        expected = projector(means)
    assert torch.allclose(pooled_features(model, tensors).rows, expected, atol=1e-5)
    assert reader.multi_modal_projector is projector


NUM_POOLED = {
    "idefics3": 3,
    "internvl": 3,
    "llava": 4,
    "llava_next": 14,
    "llava_onevision": 14,
    "smolvlm": 3,
    "vipllava": 4,
}
"""Of families whose pooled image is more than one feature."""


@pytest.mark.parametrize("family", sorted(PROJECTORS))
def test_every_family_with_such_a_projector_reads_pooled_images(family: str) -> None:
    model = tiny_vision_model(family)
    drafter = HfAttention(model)
    view = PooledView(drafter)
    rows: list[torch.Tensor] = []
    for seed in (3, 4):
        whole = prompt_with(model, [5, 8], seed, [9, 4, 7])
        pooled = view(whole)
        num_pooled = pooled.inputs[0].num_placeholders
        assert num_pooled == NUM_POOLED.get(family, 1)
        assert num_pooled < whole.inputs[0].num_placeholders
        state = drafter.new_state()
        state.prefill(pooled)
        rows.append(state.extend([7], [-1]))
    assert (rows[0] - rows[1]).abs().max() > 1e-3


def test_a_projector_that_takes_means_itself_takes_them_of_larger_squares() -> None:
    model = tiny_vision_model("gemma3")
    reader = model.base_model
    tensors = prompt_with(model, [5], 3, [9]).inputs[0].tensors
    with torch.no_grad():
        patches = reader.vision_tower(**tensors).last_hidden_state
        projector = reader.multi_modal_projector
        means = patches.mean(1, keepdim=True)
        expected = projector.mm_soft_emb_norm(means) @ projector.mm_input_projection_weight
    assert torch.allclose(pooled_features(model, tensors).rows, expected[0], atol=1e-5)
    assert projector.patches_per_image == 4


def test_features_made_beforehand_are_read_as_pixels_are() -> None:
    model, image = llava(), prompt().inputs[0]
    with torch.no_grad():
        made = model.base_model.get_image_features(**image.tensors, return_dict=True).pooler_output
    made = pooled_image(model, PooledFeatures(made), image.start)
    rows = []
    for given in (prompt(), Prompt(prompt().token_ids, (made,))):
        state = network().new_state()
        state.prefill(given)
        rows.append(state.extend([7], [-1]))
    assert torch.allclose(*rows, atol=1e-5)


def test_pooling_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidInputError, match="the drafter is none"):
        PooledView(TinyNetwork(RecurrentModel(5)))
    with pytest.raises(UnsupportedModelError, match="patches of square tiles are projected"):
        PooledView(HfAttention(tiny_vision_model("qwen2_vl")))
    odd = tiny_vision_model("aya_vision")
    odd.config.downsample_factor = 4
    with pytest.raises(UnsupportedModelError, match="1 x 1 features, and of an odd number"):
        PooledView(HfAttention(odd))
    for num_patches in (9, 12):
        with pytest.raises(InvalidInputError, match="no square with an even side"):
            pool(torch.zeros(1, num_patches, 8))
