"""How drafters read prompts with images."""

import pytest
import torch
from transformers import AddedToken, PreTrainedTokenizerFast

from treesnake.chance import TorchRng
from treesnake.drafters.image_views import Views
from treesnake.drafters.mixture import MixtureDrafterModel, Stream
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.views import RetoldView, as_it_is, natural_view
from treesnake.errors import InvalidInputError
from treesnake.prompt import Prompt, PromptInput
from treesnake.sampling import SamplingParams
from treesnake.shape import chain
from treesnake.testing import AttentionModel, TinyNetwork
from treesnake.testing.tokenizers import byte_level

MODEL = AttentionModel(13, seed=4)
SEEING, BLIND = TinyNetwork(MODEL), TinyNetwork(MODEL, reads_inputs=False)


def image(start: int, value: float = 0.5, num_placeholders: int = 3) -> PromptInput:
    return PromptInput({"pixel_values": torch.tensor([value])}, start, num_placeholders)


PROMPT = Prompt((5, 9, 1, 1, 1, 10, 8, 1, 1, 1, 2), (image(2), image(7)), borders=(1, 6, 11))


def test_each_image_is_told_in_words_and_its_marks_are_left_out() -> None:
    view = RetoldView(lambda each: [7] * each.start, marks={9, 10})
    assert view(PROMPT) == Prompt((5, 7, 7, 8, *[7] * 7, 2), borders=(1, 3, 12))


def test_a_prompt_without_images_is_read_as_it_is() -> None:
    prompt = Prompt((5, 9, 2))
    assert RetoldView(lambda _: [7], marks={9})(prompt) is prompt


def test_a_longer_prompt_is_read_as_the_same_and_more() -> None:
    view = RetoldView(lambda _: [7], marks={9, 10})
    longer = Prompt((*PROMPT.token_ids, 3, 9, 1, 1, 1, 4), (*PROMPT.inputs, image(13)))
    first = view(PROMPT).token_ids
    assert view(longer).token_ids[: len(first)] == first


def with_marks() -> PreTrainedTokenizerFast:
    tokenizer = byte_level()
    marks = ["<|vision_start|>", "<fake_token_around_image>", "<row_1_col_2>", "[IMG_END]"]
    added = [AddedToken(each, special=True) for each in (*marks, "<|im_start|>", "<end>")]
    tokenizer.add_tokens(added)
    return tokenizer


def test_marks_are_what_a_tokenizer_calls_so() -> None:
    tokenizer = with_marks()
    marks = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<row_1_col_2>", "[IMG_END]"])
    kept = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<end>"])
    prompt = Prompt((*kept, marks[0], 3, 3, marks[2], marks[1], 4), (image(3, 0.5, 2),))
    line_break = tokenizer.encode("\n", add_special_tokens=False)
    assert Views(tokenizer).of("T", BLIND)(prompt) == Prompt((*kept, *line_break, 4))


def test_an_image_is_captioned_once() -> None:
    asked: list[PromptInput] = []

    def caption(each: PromptInput) -> str:
        asked.append(each)
        return "a red circle"

    tokenizer = with_marks()
    view = Views(tokenizer, caption).of("C", BLIND)
    words = tokenizer.encode("a red circle", add_special_tokens=False)
    prompt = Prompt((3, 3, 4), (image(0, 0.5, 2),))
    assert view(prompt) == view(prompt) == Prompt((*words, 4))
    assert len(asked) == 1


def test_views_that_cannot_be_are_refused() -> None:
    views = Views(with_marks())
    with pytest.raises(InvalidInputError, match="nothing writes them"):
        views.of("C", BLIND)
    with pytest.raises(InvalidInputError, match="the drafter reads text alone"):
        views.of("M", BLIND)
    with pytest.raises(InvalidInputError, match="no stream 'X'"):
        views.of("X", SEEING)


def test_networks_read_images_if_they_can() -> None:
    assert natural_view(SEEING) is as_it_is
    assert natural_view(BLIND)(PROMPT) == PROMPT.without_inputs()


def test_a_drafter_has_a_view_with_a_window_and_without() -> None:
    view = RetoldView(lambda _: [7], marks={9, 10})
    for window in (None, 3):
        drafts = []
        for prompt in (PROMPT, view(PROMPT)):
            session = NetworkDrafterModel(BLIND, window=window, view=view).new_session()
            session.prefill(prompt)
            drafts.append(session.draft(2, chain(4), SamplingParams(), TorchRng(0)).tree)
        assert drafts[0] == drafts[1]


def test_streams_that_read_the_same_are_one() -> None:
    """Without images, text alone is all that there is; with one, there are two readings."""
    streams = Stream("M", SEEING), Stream("T", SEEING, Prompt.without_inputs)
    session = MixtureDrafterModel(streams).new_session()
    for prompt, weights in (
        (Prompt((5, 2)), {"M": 1.0, "T": 0.0}),
        (PROMPT, {"M": 0.5, "T": 0.5}),
        (Prompt((5, 2)), {"M": 1.0, "T": 0.0}),
    ):
        session.prefill(prompt)
        draft = session.draft(2, chain(1), SamplingParams(), TorchRng(0))
        assert draft.stream_weights == weights


def test_streams_of_second_turns_read_what_a_new_session_reads() -> None:
    streams = Stream("M", SEEING), Stream("T", SEEING, Prompt.without_inputs)
    model = MixtureDrafterModel(streams)
    session = model.new_session()
    for prompt in (
        Prompt((5, 2)),
        PROMPT,
        Prompt((*PROMPT.token_ids, 3, 1, 1, 1, 4), (*PROMPT.inputs, image(12, 0.1))),
        PROMPT,
    ):
        session.prefill(prompt)
        fresh = model.new_session()
        fresh.prefill(prompt)
        drafts = [
            each.draft(prompt.token_ids[-1], chain(3), SamplingParams(), TorchRng(0))
            for each in (session, fresh)
        ]
        assert drafts[0].tree == drafts[1].tree
        session.commit(drafts[0].tree.tokens)
