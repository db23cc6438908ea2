"""What a target said is read in a drafter's tokens."""

import pytest
import torch

from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.said_texts import (
    MOST_BEFORE,
    MOST_WANTED,
    NONE,
    OtherTokenReader,
    SaidText,
    SameTokenReader,
    outputs_by_token,
)
from treesnake.drafters.text import TextDrafterModel, Translation
from treesnake.drafters.vocabulary import DraftVocabulary
from treesnake.prompt import Prompt
from treesnake.testing import RecurrentModel, TinyNetwork
from treesnake.testing.tokenizers import byte_level, byte_level_split

SIZE = 10
MODEL = NetworkDrafterModel(TinyNetwork(RecurrentModel(SIZE)))


def said(prompt: list[int], answer: list[int]) -> SaidText:
    tokens = [prompt[-1], *answer[:-1]]
    return SaidText(Prompt.of(prompt), tokens, [{token: 1.0} for token in answer], 1.0)


def test_a_network_with_the_targets_tokens_wants_what_the_target_says() -> None:
    text = SameTokenReader(MODEL).read(said([3, 4, 5], [6, 7, 8]))
    assert text.token_ids == [3, 4, 5, 6, 7]
    assert text.places.tolist() == [2, 3, 4]
    assert text.wanted[:, 0].tolist() == [6, 7, 8]
    assert text.shares[:, 0].tolist() == [1.0, 1.0, 1.0]
    assert (text.wanted[:, 1:] == NONE).all()


def test_the_most_probable_tokens_are_wanted_in_order() -> None:
    shares = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.15, 5: 0.25}
    text = SameTokenReader(MODEL).read(SaidText(Prompt((0,)), [0], [shares], 0.7))
    assert text.wanted.tolist() == [[2, 5, 3, 4]]
    assert text.shares.sum() == pytest.approx(0.9)
    assert len(text.wanted[0]) == MOST_WANTED
    assert text.temperature == 0.7


def test_a_long_prompt_is_cut_at_its_beginning() -> None:
    prompt = [number % SIZE for number in range(MOST_BEFORE + 20)]
    text = SameTokenReader(MODEL).read(said(prompt, [1, 2]))
    assert len(text.token_ids) == MOST_BEFORE + 2
    assert text.token_ids[:MOST_BEFORE] == prompt[19:-1]
    assert text.places.tolist() == [MOST_BEFORE, MOST_BEFORE + 1]


def test_places_of_which_nothing_is_known_want_nothing() -> None:
    text = SameTokenReader(MODEL).read(SaidText(Prompt((1, 2)), [2, 3, 4], [{}, {5: 1.0}, {}], 1.0))
    assert text.places.tolist() == [2]


def test_tokens_that_the_network_cannot_say_are_not_wanted() -> None:
    kept = torch.tensor([7, 2, 5])
    network = TinyNetwork(RecurrentModel(SIZE))
    vocabulary = DraftVocabulary(kept, SIZE, SIZE)
    network_of_three = _restricted(network, kept)
    model = NetworkDrafterModel(network_of_three, vocabulary)
    assert outputs_by_token(model) == {7: 0, 2: 1, 5: 2}
    text = SameTokenReader(model).read(said([1], [2, 3, 7]))
    assert text.token_ids == [1, 2, 3]
    assert (text.places.tolist(), text.wanted[:, 0].tolist()) == ([0, 2], [1, 0])


def _restricted(network: TinyNetwork, kept: torch.Tensor) -> TinyNetwork:
    class Restricted(TinyNetwork):
        def new_state(self):
            state = network.new_state()
            whole = state.extend
            state.extend = lambda tokens, parents: whole(tokens, parents)[:, kept]
            return state

    return Restricted(RecurrentModel(SIZE))


def test_a_network_that_drafts_in_text_wants_how_the_text_goes_on_in_its_tokens() -> None:
    own, target = byte_level(), byte_level_split()
    network = NetworkDrafterModel(TinyNetwork(RecurrentModel(len(own))))
    reader = OtherTokenReader(TextDrafterModel(network, Translation(own, target)))
    prompt = target.encode("the quick brown", add_special_tokens=False)
    answer = target.encode(" fox jumps over the lazy dog", add_special_tokens=False)
    text = reader.read(said(prompt, answer))
    assert "the quick brown fox jumps over the lazy dog".startswith(own.decode(text.token_ids))
    assert text.wanted[:, 0].tolist() == list(text.token_ids[int(text.places[0]) + 1 :])
    begun = own.decode(text.token_ids[: int(text.places[0]) + 1])
    assert "the quick brown".startswith(begun)
    assert (text.shares[:, 0] == 1).all()
