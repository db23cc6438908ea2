"""Drafters with other vocabularies than the target's: exact, and never outside of what both say."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from treesnake.chance import TorchRng
from treesnake.drafters.network import NetworkDrafter
from treesnake.drafters.vocabulary import (
    DraftVocabulary,
    PaddedVocabulary,
    SharedTokens,
    VocabularyMap,
    check_same_tokens,
    has_same_tokens,
    read_draft_vocabulary,
    save_draft_vocabulary,
    share_tokens,
)
from treesnake.errors import InvalidInputError, LoadError
from treesnake.generate import generate
from treesnake.prompt import Prompt
from treesnake.sampling import Rng, SamplingParams
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, BestFirst, LevelWidths, Shape, chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import (
    RecurrentModel,
    TableModel,
    TinyModel,
    TinyNetwork,
    check_drafter,
    enumerate_outcomes,
)
from treesnake.testing.conformance import sequence_distribution, total_variation
from treesnake.testing.tiny import TinyState

TARGET_SIZE = 4
SAMPLING = SamplingParams(temperature=1.0)


@dataclass(frozen=True)
class Restricted:
    """A tiny model that gives logits of some tokens only, as one with a draft vocabulary does."""

    model: TinyModel
    kept: torch.Tensor

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    def initial(self) -> Any:
        return self.model.initial()

    def step(self, state: Any, token: int) -> tuple[Any, torch.Tensor]:
        state, logits = self.model.step(state, token)
        return state, logits[self.kept]


@dataclass(frozen=True)
class MappedDrafterModel:
    model: TinyModel
    vocabulary: VocabularyMap

    def new_session(self) -> NetworkDrafter:
        return NetworkDrafter(TinyState(self.model), self.vocabulary)


KEPT = torch.tensor([3, 1])
SHARED = SharedTokens(torch.tensor([4, 0]), torch.tensor([1, 2]), (2, 4, 0, 2))
MAPS: dict[str, Callable[[type], MappedDrafterModel]] = {
    "cut": lambda kind: MappedDrafterModel(kind(6), PaddedVocabulary(6, TARGET_SIZE)),
    "padded": lambda kind: MappedDrafterModel(kind(3), PaddedVocabulary(3, TARGET_SIZE)),
    "draft vocabulary": lambda kind: MappedDrafterModel(
        Restricted(kind(5), KEPT), DraftVocabulary(KEPT, 5, TARGET_SIZE)
    ),
    "shared tokens": lambda kind: MappedDrafterModel(kind(5), SHARED),
}

each_map = pytest.mark.parametrize("name", MAPS)


def tokenizer(tokens: list[str], name: str, added: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of which only the vocabulary counts."""
    model = WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=tokens[0])
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), name_or_path=name)
    made.add_tokens(list(added), special_tokens=True)
    return made


def new_tokens(
    drafter: MappedDrafterModel,
    target: TinyModel,
    shape: Shape,
    params: SamplingParams,
    rng: Rng,
    num_new: int,
) -> tuple[int, ...]:
    steps = generate(
        NetworkTargetModel(TinyNetwork(target)).new_session(),
        drafter.new_session(),
        Prompt((0,)),
        search=StaticSearch(shape),
        params=params,
        rng=rng,
        max_length=1 + num_new,
    )
    return tuple(token for step in steps for token in step.emitted)


@each_map
def test_a_mapped_drafter_is_a_drafter(name):
    check_drafter(MAPS[name](RecurrentModel), TARGET_SIZE, num_steps=3)


@each_map
@pytest.mark.parametrize(
    "shape", [chain(2), LevelWidths((2, 1)), LevelWidths((3,), False)], ids=str
)
def test_sampled_texts_have_the_targets_distribution(name, shape):
    target, drafter = TableModel(TARGET_SIZE, seed=7), MAPS[name](TableModel)
    actual = enumerate_outcomes(
        lambda rng: new_tokens(drafter, target, shape, SAMPLING, rng, num_new=2)
    )
    expected = sequence_distribution(target, 0, SAMPLING, 2)
    assert total_variation(actual, expected) < 1e-5


@each_map
def test_greedy_output_is_the_targets_own(name):
    target, drafter = RecurrentModel(TARGET_SIZE, seed=3), MAPS[name](RecurrentModel)
    outputs = {
        new_tokens(drafter, target, shape, SamplingParams(), TorchRng(0), num_new=40)
        for shape in (OFF, chain(4), LevelWidths((3, 2)), BestFirst(4, 3, 9))
    }
    assert len(outputs) == 1


@each_map
def test_nothing_is_drafted_that_the_drafter_cannot_say(name):
    sayable = {"cut": {0, 1, 2, 3}, "padded": {0, 1, 2}, "shared tokens": {1, 2}}.get(name, {1, 3})
    for shape in (LevelWidths((4, 4)), LevelWidths((4, 4), False), BestFirst(4, 2, 20)):
        session = MAPS[name](TableModel).new_session()
        session.prefill(Prompt((3, 0)))
        draft = session.draft(0, shape, SAMPLING, TorchRng(0))
        assert set(draft.tree.tokens[1:]) == sayable


def test_rows_of_padding_are_cut_and_filled():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert PaddedVocabulary(3, 2).known(logits).tolist() == [[1, 2]]
    assert PaddedVocabulary(3, 4).spread(logits, -inf).tolist() == [[1, 2, 3, -inf]]
    assert PaddedVocabulary(3, 4).express([0, 2, 3]) == [0, 2, 0]


def test_logits_of_a_draft_vocabulary_go_to_their_tokens():
    vocabulary = DraftVocabulary(KEPT, 5, TARGET_SIZE)
    assert vocabulary.spread(torch.tensor([[1.0, 2.0]]), -inf).tolist() == [[-inf, 2, -inf, 1]]
    assert vocabulary.express([0, 3]) == [0, 3]


def test_a_draft_vocabulary_lies_beside_its_network(tmp_path: Path):
    assert read_draft_vocabulary(tmp_path) is None
    save_draft_vocabulary(tmp_path, KEPT)
    found = read_draft_vocabulary(tmp_path)
    assert found is not None
    assert found.tolist() == KEPT.tolist()
    (tmp_path / "draft_vocabulary.json").write_text('{"tokens": 3}')
    with pytest.raises(LoadError, match="no list of token ids"):
        read_draft_vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("token_ids", "reason"), [([1, 1], "each of them once"), ([1, 4], "ids from 1 to 4")]
)
def test_a_draft_vocabulary_that_makes_no_sense_is_refused(token_ids, reason):
    with pytest.raises(InvalidInputError, match=reason):
        DraftVocabulary(torch.tensor(token_ids), 5, TARGET_SIZE)


def test_tokenizers_with_the_same_tokens_are_the_same():
    tokens = ["\u0120the", "\u0120cat", "s"]
    check_same_tokens(
        tokenizer(tokens, "drafter"), tokenizer([*tokens, "x"], "target", ("<turn>",))
    )
    check_same_tokens(tokenizer(tokens, "drafter", ("<end>",)), tokenizer(tokens, "t", ("<turn>",)))


def test_tokenizers_that_differ_are_named_with_a_token():
    first = tokenizer(["\u0120the", "\u0120cat"], "org/drafter")
    other = tokenizer(["\u0120the", "\u0120dog"], "org/target")
    with pytest.raises(
        InvalidInputError, match=r"token 1 is 'Ġcat' in org/drafter and 'Ġdog' in org/target; "
    ):
        check_same_tokens(first, other)


def test_tokens_are_shared_by_what_they_spell():
    """A byte-level vocabulary and one of SentencePiece: a space, a letter of two bytes, a byte."""
    byte_level = tokenizer(
        ["\u0120the", "\u0120cat", "\u00c3\u00a9", "\u010a"], "bytes", ("<end>",)
    )
    pieces = tokenizer(["\u2581dog", "<0x0A>", "\u00e9", "\u2581the"], "pieces", ("<end>",))
    shared = share_tokens(pieces, byte_level, target_size=6)
    pairs = dict(zip(shared.target_ids.tolist(), shared.network_ids.tolist(), strict=True))
    assert pairs == {0: 3, 2: 2, 3: 1, 4: 4}
    assert shared.express([0, 1, 2, 3, 4, 5]) == [3, 0, 2, 1, 4, 0]


def test_tokenizers_without_a_common_token_are_refused():
    with pytest.raises(InvalidInputError, match="a and b have no token in common"):
        share_tokens(tokenizer(["x"], "a"), tokenizer(["y"], "b"), target_size=1)


def test_a_few_tokens_in_common_are_no_common_vocabulary() -> None:
    ours = tokenizer(["<end>", *"abcdefgh"], "drafter", ("<end>",))
    assert has_same_tokens(ours, tokenizer(["<turn>", *"abcdefgh"], "target", ("<turn>",)))
    assert not has_same_tokens(ours, tokenizer(["<turn>"], "target", ("<turn>",)))
    assert not has_same_tokens(ours, tokenizer(["<end>", *"abcdefgx"], "target", ("<end>",)))
