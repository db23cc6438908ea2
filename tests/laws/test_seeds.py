"""A seed gives the sample of plain decoding, whatever drafts and whatever shapes are chosen."""

import pytest

from treesnake.continuation import continue_text
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.mixture import MixtureDrafterModel, Stream
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.outcome import Step
from treesnake.prompt import Prompt
from treesnake.protocols import DrafterModel, SharedSearch
from treesnake.sampling import SamplingParams
from treesnake.search.by_name import SELF_TUNING, search_by_name
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, BestFirst, LevelWidths, Priced, Shape, chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing.tiny import AttentionModel, RecurrentModel, TableModel, TinyNetwork

VOCAB_SIZE = 12
NUM_TOKENS = 40
TARGET = TinyNetwork(RecurrentModel(VOCAB_SIZE, seed=1))
NEAR = NetworkDrafterModel(TARGET)
FAR = NetworkDrafterModel(TinyNetwork(TableModel(VOCAB_SIZE, seed=2)))

DRAFTERS: dict[str, DrafterModel] = {
    "near": NEAR,
    "far": FAR,
    "with lookup": CompositeDrafterModel(FAR, NgramDrafterModel()),
    "mixture": MixtureDrafterModel(
        (Stream("a", TARGET), Stream("b", TinyNetwork(AttentionModel(VOCAB_SIZE, seed=3))))
    ),
}
SHAPES: list[Shape] = [
    OFF,
    chain(4, sampled=False),
    LevelWidths((3, 2, 1), sampled=False),
    BestFirst(3, 3, 9),
    Priced(3, (0.0, 0.2, 0.4), (0.0, 0.05, 0.1, 0.1, 0.1)),
]
SEARCHES: dict[str, SharedSearch] = {
    **{str(shape): StaticSearch(shape) for shape in SHAPES},
    SELF_TUNING: search_by_name(SELF_TUNING),
}


def sample(
    drafter: DrafterModel, search: SharedSearch, params: SamplingParams, seed: int
) -> list[Step]:
    continuation = continue_text(
        NetworkTargetModel(TARGET).new_session(),
        drafter.new_session(),
        Prompt((1, 2, 3)),
        SamplingParams(params.temperature, params.top_k, params.top_p, seed=seed),
        search=search.new_session(),
        max_new_tokens=NUM_TOKENS,
    )
    return list(continuation.steps)


def text(steps: list[Step]) -> list[int]:
    return [token for step in steps for token in step.emitted]


@pytest.mark.parametrize(
    "params",
    [SamplingParams(1.0), SamplingParams(0.7, top_p=0.9), SamplingParams(1.4, top_k=5)],
    ids=["temperature 1", "nucleus", "top 5"],
)
@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_seed_gives_the_sample_of_plain_decoding(
    drafter: str, name: str, params: SamplingParams
) -> None:
    for seed in (0, 7):
        plain = text(sample(NoDrafterModel(), StaticSearch(OFF), params, seed))
        assert text(sample(DRAFTERS[drafter], SEARCHES[name], params, seed)) == plain


def test_seeds_give_samples_of_their_own() -> None:
    params = SamplingParams(1.0)
    texts = {tuple(text(sample(NEAR, StaticSearch(OFF), params, seed))) for seed in range(8)}
    assert len(texts) == 8


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_drafter_that_is_the_target_guesses_every_token(temperature: float) -> None:
    """It knows the noise by which the target draws; most probable tokens would often be wrong."""
    steps = sample(NEAR, StaticSearch(chain(3, sampled=False)), SamplingParams(temperature), 5)
    assert {len(step.emitted) for step in steps[1:-1]} == {4}  # the first drafts nothing
