"""A replay is what would have happened: compared with the loop itself on toys."""

import pytest

from treesnake.chance import TorchRng
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.evaluation.simulation.recording import record
from treesnake.evaluation.simulation.replay import Machine, replay
from treesnake.evaluation.simulation.trace import Trace
from treesnake.generate import generate
from treesnake.outcome import Step
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.search.costs import CostTable
from treesnake.search.self_tuning import SelfTuningSearch
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, BestFirst, FixedTree, LevelWidths, Priced, Shape, chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TableModel, TinyNetwork

PROMPT = Prompt((1, 2, 3))
NUM_TOKENS = 40
COSTS = CostTable({64: {1: 1.0, 64: 2.0}}, {64: {1: 0.1, 16: 0.2}})
SHAPES = [
    OFF,
    chain(3),
    LevelWidths((3, 2)),
    FixedTree((0, 0, 1, 3)),
    BestFirst(2, 3, 5),
    BestFirst(3, 4, 12),
    Priced(3, (0.0, 0.5, 0.2), (0.05, 0.1, 0.1, 0.2, 0.3)),
]


GREEDY, SAMPLE = SamplingParams(), SamplingParams(temperature=0.8, seed=7)


def recorded(seed: int, num_tokens: int = NUM_TOKENS, params: SamplingParams = GREEDY) -> Trace:
    target = RecurrentModel(6, seed=seed)
    drafter = TableModel(6, seed=seed)
    pair = Pair(NetworkTargetModel(TinyNetwork(target)), NetworkDrafterModel(TinyNetwork(drafter)))
    return record(
        pair,
        PROMPT,
        num_tokens=num_tokens,
        end_token_ids=(),
        tree=BestFirst(6, 5, 2000),
        params=params,
    )


class Watched:
    """A search that keeps the steps that it is told of."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.steps: list[Step] = []

    def choose(self, context_length: int) -> Shape:
        return self.shape

    def observe(self, step: Step) -> None:
        self.steps.append(step)


@pytest.mark.parametrize(
    ("shape", "params"),
    [
        *((shape, GREEDY) for shape in SHAPES),
        *((shape, SAMPLE) for shape in [OFF, FixedTree((0, 0, 1, 3), sampled=False), *SHAPES[-3:]]),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_replay_drafts_and_accepts_what_the_loop_does(
    shape: Shape, params: SamplingParams, seed: int
) -> None:
    real, replayed = Watched(shape), Watched(shape)
    list(
        generate(
            NetworkTargetModel(TinyNetwork(RecurrentModel(6, seed=seed))).new_session(),
            NetworkDrafterModel(TinyNetwork(TableModel(6, seed=seed))).new_session(),
            PROMPT,
            search=real,
            params=params,
            rng=TorchRng(params.seed),
            max_length=len(PROMPT) + NUM_TOKENS,
        )
    )
    replay(recorded(seed, params=params), replayed, Machine(COSTS))
    assert len(real.steps) == len(replayed.steps)
    for expected, actual in zip(real.steps, replayed.steps, strict=True):
        assert actual.shape == expected.shape
        assert actual.tree.parents == expected.tree.parents
        assert actual.acceptance.path == expected.acceptance.path
        assert len(actual.emitted) == len(expected.emitted)
        if expected.node_probs is not None:
            assert actual.node_probs == pytest.approx(expected.node_probs, abs=1e-4)


def test_a_step_takes_what_the_table_says() -> None:
    trace = recorded(1)
    plain = replay(trace, StaticSearch(OFF), Machine(COSTS))
    assert plain.seconds == pytest.approx(NUM_TOKENS)
    assert plain.num_steps == plain.tokens == NUM_TOKENS
    steps = Watched(LevelWidths((3, 2)))
    replay(trace, steps, Machine(COSTS))
    nodes, levels = 10, [1, 3]
    expected = Machine(COSTS).seconds(nodes, levels, 71, 0)
    assert steps.steps[0].seconds == expected
    assert expected.draft_s > 0.2


def test_a_drafter_that_was_off_reads_up_on_what_it_missed() -> None:
    machine = Machine(COSTS)
    assert machine.seconds(2, [1], 70, 50).draft_s > machine.seconds(2, [1], 70, 0).draft_s
    assert machine.seconds(1, [], 70, 50).draft_s == 0


def test_noise_of_one_seed_is_the_same_again() -> None:
    trace = recorded(2)
    first, again, other = (
        replay(
            trace, SelfTuningSearch().new_session(), Machine(COSTS, noise=0.1, seed=seed)
        ).seconds
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_recorded_text_ends_where_the_targets_does() -> None:
    target = NetworkTargetModel(TinyNetwork(RecurrentModel(6, seed=1)))
    whole = [
        step.emitted[0]
        for step in generate(
            target.new_session(),
            NetworkDrafterModel(TinyNetwork(TableModel(6))).new_session(),
            PROMPT,
            search=StaticSearch(OFF),
            params=SamplingParams(),
            rng=TorchRng(0),
            max_length=len(PROMPT) + NUM_TOKENS,
        )
    ]
    end = whole[7]
    drafter = NetworkDrafterModel(TinyNetwork(TableModel(6)))
    trace = record(Pair(target, drafter), PROMPT, num_tokens=NUM_TOKENS, end_token_ids=[end])
    assert len(trace) == whole.index(end) + 1


def test_a_sample_without_a_seed_cannot_be_recorded() -> None:
    with pytest.raises(InvalidInputError, match="needs a seed"):
        recorded(1, params=SamplingParams(temperature=1.0))


def test_a_drafter_without_probabilities_cannot_be_recorded() -> None:
    pair = Pair(NetworkTargetModel(TinyNetwork(RecurrentModel(6))), NoDrafterModel())
    with pytest.raises(InvalidInputError, match="probabilities"):
        record(pair, PROMPT, num_tokens=4, end_token_ids=())
