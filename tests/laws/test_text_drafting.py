"""Sampled output has the target's distribution if the drafter writes text in tokens of its own."""

from collections.abc import Sequence

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from treesnake.acceptance.exact import exact
from treesnake.chance import TorchRng
from treesnake.continuation import continue_text
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.drafters.text import TextDrafterModel, Translation
from treesnake.outcome import Step
from treesnake.prompt import Prompt
from treesnake.protocols import DrafterModel
from treesnake.sampling import SamplingParams
from treesnake.search.static import StaticSearch
from treesnake.shape import BestFirst, LevelWidths, Shape, chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import TableModel, TinyNetwork
from treesnake.testing.conformance import (
    emitted_distribution,
    sequence_distribution,
    total_variation,
)
from treesnake.testing.tokenizers import END

SAMPLED = SamplingParams(temperature=1.0)
NUM_TOKENS = 3


def pieces(merges: Sequence[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Returns pairs of two letters and a space."""
    tokens = dict.fromkeys(["a", "b", "▁", *("".join(pair) for pair in merges)])
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, [*merges]))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


OURS = {
    "one word": pieces([("a", "b"), ("▁", "a")]),
    "more pairs": pieces([("b", "a"), ("▁", "b"), ("b", "b")]),
}
THEIRS = {
    "single letters": pieces([]),
    "pairs": pieces([("a", "a"), ("a", "b")]),
    "words": pieces([("▁", "a"), ("▁", "b")]),
}


def model(ours: str, theirs: str, seed: int) -> DrafterModel:
    drafter, target = OURS[ours], THEIRS[theirs]
    ends = {drafter.eos_token_id}, {target.eos_token_id}
    network = TinyNetwork(TableModel(len(drafter), seed=seed))
    return TextDrafterModel(NetworkDrafterModel(network), Translation(drafter, target, *ends))


@pytest.mark.parametrize("shape", [chain(2), LevelWidths((2, 2)), BestFirst(2, 2, 4)])
@pytest.mark.parametrize("theirs", THEIRS)
@pytest.mark.parametrize("ours", OURS)
def test_it_is_the_targets_distribution(ours: str, theirs: str, shape: Shape) -> None:
    num_drafted = 0
    for seed in range(4):
        drafter = model(ours, theirs, seed)
        if seed % 2:
            drafter = CompositeDrafterModel(drafter, NgramDrafterModel(shortest=1))
        target = TableModel(len(THEIRS[theirs]), seed=seed + 10)
        text = [1, 0, 2, 0, 1, seed % 4]

        session = drafter.new_session()
        session.prefill(Prompt.of(text))
        emitted = emitted_distribution(
            exact,
            lambda rng, session=session, text=text: session.draft(text[-1], shape, SAMPLED, rng),
            target,
            SAMPLED,
            NUM_TOKENS,
        )
        expected = sequence_distribution(target, text[-1], SAMPLED, NUM_TOKENS)
        assert total_variation(emitted, expected) < 1e-5
        draft = session.draft(text[-1], shape, SAMPLED, TorchRng(0))
        num_drafted += draft.tree.num_drafted
    assert num_drafted


def steps_of(drafter: DrafterModel, target: TableModel, shape: Shape, seed: int) -> list[Step]:
    continuation = continue_text(
        NetworkTargetModel(TinyNetwork(target)).new_session(),
        drafter.new_session(),
        Prompt.of([1, 0, 2, 0, 1, 0]),
        SamplingParams(temperature=1.0, seed=seed),
        search=StaticSearch(shape),
        max_new_tokens=24,
    )
    return list(continuation.steps)


@pytest.mark.parametrize("theirs", THEIRS)
def test_a_seed_gives_the_sample_of_plain_decoding(theirs: str) -> None:
    target = TableModel(len(THEIRS[theirs]), seed=3)
    for seed in range(3):
        texts = {
            tuple(
                token for step in steps_of(drafter, target, shape, seed) for token in step.emitted
            )
            for drafter in (model("more pairs", theirs, 4), NoDrafterModel())
            for shape in (chain(2), LevelWidths((2, 2)))
        }
        assert len(texts) == 1


def test_the_drafter_guesses_by_the_noise_of_the_targets_tokens() -> None:
    """Its network says what the target says, so it knows what the target will draw."""
    same = pieces([])
    table = TableModel(len(same), seed=5)
    translation = Translation(same, same, {same.eos_token_id}, {same.eos_token_id})
    drafter = TextDrafterModel(NetworkDrafterModel(TinyNetwork(table)), translation)
    steps = steps_of(drafter, table, chain(2), 1)
    assert sum(len(step.emitted) for step in steps) > 2 * len(steps)
