"""What drafters make of prompts with images: some see them, others read the text around them."""

from collections.abc import Sequence

import pytest
import torch

from treesnake.chance import TorchRng
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.prompt import Prompt, PromptInput
from treesnake.sampling import SamplingParams
from treesnake.shape import chain
from treesnake.testing import AttentionModel, TinyNetwork

MODEL = AttentionModel(13, seed=4)
SEEING, BLIND = TinyNetwork(MODEL), TinyNetwork(MODEL, reads_inputs=False)


def image(start: int, value: float = 0.5, num_placeholders: int = 3) -> PromptInput:
    return PromptInput({"pixel_values": torch.tensor([value])}, start, num_placeholders)


def drafted(drafter: object, anchor: int) -> Sequence[int]:
    draft = drafter.draft(anchor, chain(4), SamplingParams(), TorchRng(0))  # type: ignore[attr-defined]
    return draft.tree.tokens


def first_drafted(model: NetworkDrafterModel, prompt: Prompt) -> Sequence[int]:
    drafter = model.new_session()
    drafter.prefill(prompt)
    return drafted(drafter, prompt.token_ids[-1])


def test_a_network_that_reads_images_is_given_them() -> None:
    texts = [Prompt((5, 1, 1, 1, 8, 2), (image(1, value),)) for value in (0.1, 0.2, 0.3, 0.4)]
    assert len({tuple(first_drafted(NetworkDrafterModel(SEEING), text)) for text in texts}) > 1


def test_a_network_that_reads_text_alone_is_given_no_placeholders() -> None:
    prompt = Prompt((5, 1, 1, 1, 8, 2), (image(1),), borders=(5,))
    for window in (None, 3):
        model = NetworkDrafterModel(BLIND, window=window)
        assert first_drafted(model, prompt) == first_drafted(model, Prompt((5, 8, 2)))


@pytest.mark.parametrize("num_more", range(12))
def test_a_window_shows_whole_images_or_none_of_them(num_more: int) -> None:
    """The text grows token by token; what is seen is what a new session sees of it."""
    model = NetworkDrafterModel(TinyNetwork(MODEL, context_length=100), window=8)
    prompt = Prompt((5, 1, 1, 1, 8, 1, 1, 1, 2), (image(1), image(5, 0.2)))
    drafter = model.new_session()
    drafter.prefill(prompt)
    text = list(prompt.token_ids)
    for token in range(num_more):
        drafted(drafter, text[-1])
        drafter.commit([text[-1]])
        text.append(token)
    grown = Prompt(tuple(text), prompt.inputs)
    assert drafted(drafter, text[-1]) == first_drafted(model, grown)


def test_an_image_at_the_edge_of_a_window_is_left_out() -> None:
    prompt = Prompt((5, 1, 1, 1, 8, 2, 3), (image(1),))
    model = NetworkDrafterModel(SEEING, window=4)
    assert first_drafted(model, prompt) == first_drafted(model, Prompt((8, 2, 3)))
