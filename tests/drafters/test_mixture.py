"""Streams that draft as one."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from treesnake.chance import TorchRng
from treesnake.decoder import SpeculativeDecoder
from treesnake.draft import Draft, Scored
from treesnake.drafters.mixture import (
    RETRY_STEPS,
    TRIAL_STEPS,
    MixtureDrafter,
    MixtureDrafterModel,
    Stream,
)
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.drafters.vocabulary import DraftVocabulary
from treesnake.drafters.weight_rules import (
    Evidence,
    FixedWeights,
    Weighing,
)
from treesnake.errors import InvalidInputError
from treesnake.generate import generate
from treesnake.models.tree_network import Part
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.sampling import Distributions, SamplingParams, to_probs
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, BestFirst, LevelWidths, Shape, chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TableModel, TinyNetwork, check_drafter

VOCAB_SIZE = 5
NETWORK = TinyNetwork(RecurrentModel(VOCAB_SIZE, seed=1))
OTHER = TinyNetwork(RecurrentModel(VOCAB_SIZE, seed=2))
GREEDY, SAMPLING = SamplingParams(), SamplingParams(temperature=1.0)
PROMPT = Prompt((1, 2, 3, 4, 0, 1))


def last_tokens(prompt: Prompt) -> Prompt:
    return Prompt(prompt.token_ids[-3:])


def mixture(*weights: float) -> MixtureDrafterModel:
    """One network that reads the whole prompt and its end."""
    streams = Stream("whole", NETWORK), Stream("end", NETWORK, last_tokens)
    return MixtureDrafterModel(streams, FixedWeights(weights or None))


def draft_of(session: MixtureDrafter, shape: Shape, params: SamplingParams = GREEDY) -> Draft:
    session.prefill(PROMPT)
    return session.draft(PROMPT.token_ids[-1], shape, params, TorchRng(0))


def rows_of(prompt: Prompt, network: TinyNetwork = NETWORK) -> torch.Tensor:
    state = network.new_state()
    state.prefill(prompt)
    return state.extend(prompt.token_ids[-1:], [-1])[0]


def test_a_mixture_keeps_the_promises_of_drafters() -> None:
    streams = Stream("one", NETWORK), Stream("same", NETWORK), Stream("other", OTHER)
    check_drafter(MixtureDrafterModel(streams), VOCAB_SIZE, num_steps=2)


def test_one_stream_drafts_as_its_network_does() -> None:
    tempered = SamplingParams(0.7, top_k=3)
    for shape, params in (
        (chain(3), GREEDY),
        (chain(3), tempered),
        (LevelWidths((2, 2)), tempered),
        (BestFirst(2, 3, 4), GREEDY),
    ):
        alone = NetworkDrafterModel(NETWORK).new_session()
        alone.prefill(PROMPT)
        expected = alone.draft(1, shape, params, TorchRng(0))
        session = MixtureDrafterModel((Stream("only", NETWORK),)).new_session()
        draft = draft_of(session, shape, params)
        assert draft.tree == expected.tree
        if draft.draft_probs is not None and expected.draft_probs is not None:
            assert torch.allclose(draft.draft_probs, expected.draft_probs, atol=1e-6)


def test_what_is_drawn_from_is_the_weighted_sum_of_the_streams() -> None:
    draft = draft_of(mixture(1, 3).new_session(), chain(1), SamplingParams(0.5))
    rows = [to_probs(rows_of(view), SamplingParams(0.5)) for view in (PROMPT, last_tokens(PROMPT))]
    assert draft.draft_probs is not None
    assert torch.allclose(draft.draft_probs[0], 0.25 * rows[0] + 0.75 * rows[1], atol=1e-6)


def test_filters_apply_to_the_mixture() -> None:
    draft = draft_of(mixture().new_session(), chain(1), SamplingParams(1.0, top_k=2))
    assert draft.draft_probs is not None
    assert int((draft.draft_probs[0] > 0).sum()) == 2


def test_streams_of_one_network_share_each_pass() -> None:
    passes: list[int] = []

    class Counting(TinyNetwork):
        def extend_all(self, parts: Sequence[Part]) -> list[torch.Tensor]:
            passes.append(len(parts))
            return super().extend_all(parts)

    network = Counting(RecurrentModel(VOCAB_SIZE, seed=1))
    streams = Stream("a", network), Stream("b", network, last_tokens), Stream("c", OTHER)
    draft_of(MixtureDrafterModel(streams).new_session(), chain(3))
    assert passes == [2, 2, 2]


def test_streams_may_have_vocabularies_of_their_own() -> None:
    few = DraftVocabulary(torch.tensor([0, 3]), VOCAB_SIZE, VOCAB_SIZE)

    class Restricted(TinyNetwork):
        def extend_all(self, parts: Sequence[Part]) -> list[torch.Tensor]:
            return [rows[:, [0, 3]] for rows in super().extend_all(parts)]

    network = Restricted(RecurrentModel(VOCAB_SIZE, seed=1))
    streams = Stream("all", OTHER), Stream("few", network, vocabulary=few)
    draft = draft_of(MixtureDrafterModel(streams).new_session(), chain(1), SAMPLING)
    full, part = to_probs(rows_of(PROMPT, OTHER), SAMPLING), torch.zeros(VOCAB_SIZE)
    part[[0, 3]] = to_probs(rows_of(PROMPT)[[0, 3]], SAMPLING)
    assert draft.draft_probs is not None
    assert torch.allclose(draft.draft_probs[0], (full + part) / 2, atol=1e-6)


def test_streams_of_one_draft_vocabulary_are_mixed_in_it() -> None:
    few = DraftVocabulary(torch.tensor([3, 0]), VOCAB_SIZE, VOCAB_SIZE)

    class Restricted(TinyNetwork):
        def extend_all(self, parts: Sequence[Part]) -> list[torch.Tensor]:
            return [rows[:, [3, 0]] for rows in super().extend_all(parts)]

    network = Restricted(RecurrentModel(VOCAB_SIZE, seed=1))
    rule = Noting()
    streams = Stream("whole", network, None, few), Stream("end", network, last_tokens, few)
    session = MixtureDrafterModel(streams, rule).new_session()
    draft = draft_of(session, chain(1), SAMPLING)
    expected = torch.zeros(2, VOCAB_SIZE)
    for row, view in zip(expected, (PROMPT, last_tokens(PROMPT)), strict=True):
        row[[0, 3]] = to_probs(rows_of(view)[[0, 3]], SAMPLING)
    assert draft.draft_probs is not None
    assert torch.allclose(draft.draft_probs[0], expected.mean(0), atol=1e-6)
    session.commit(draft.tree.tokens, scored(draft, TableModel(VOCAB_SIZE)))
    shown = rule.shown[0]
    assert shown.column_of is not None
    assert shown.column_of.tolist() == [1, -1, -1, 0, -1]
    assert shown.draft_rows[0] == pytest.approx(expected[:, [3, 0]].numpy(), abs=1e-6)


def scored(draft: Draft, target: TableModel) -> Scored:
    """A target that accepts the first path to a leaf."""
    path = [0]
    while children := draft.tree.children[path[-1]]:
        path.append(children[0])
    logits = TinyNetwork(target).new_state().extend(draft.tree.tokens, draft.tree.parents)
    return Scored(draft, Distributions(logits, SAMPLING), tuple(path))


class Noting:
    """A rule that notes what it is shown."""

    def __init__(self, weights: tuple[float, ...] = (0.5, 0.5)) -> None:
        self.weights = np.array(weights)
        self.shown: list[Evidence] = []

    def start(self, weights: np.ndarray) -> Weighing:
        return Weighing(weights, np.zeros(0))

    def update(self, weighing: Weighing, evidence: Evidence) -> Weighing:
        self.shown.append(evidence)
        return Weighing(self.weights, np.zeros(0))


def test_a_rule_is_shown_the_nodes_that_became_text_and_were_run() -> None:
    """Of a chain of two, accepted whole, the streams ran the anchor and the first token."""
    rule = Noting()
    streams = Stream("whole", NETWORK), Stream("end", NETWORK, last_tokens)
    session = MixtureDrafterModel(streams, rule).new_session()
    draft = draft_of(session, chain(2))
    outcome = scored(draft, TableModel(VOCAB_SIZE))
    session.commit(draft.tree.tokens, outcome)
    shown = rule.shown[0]
    assert np.array_equal(np.stack(shown.target_rows), outcome.target.probs[:2].numpy())
    expected = to_probs(rows_of(PROMPT), SAMPLING)
    assert shown.draft_rows[0][0] == pytest.approx(expected.numpy(), abs=1e-6)
    after_first = Prompt((*PROMPT.token_ids, draft.tree.tokens[1]))
    expected = to_probs(rows_of(after_first), SAMPLING)
    assert shown.draft_rows[1][0] == pytest.approx(expected.numpy(), abs=1e-6)


def test_weights_stay_where_nothing_was_said() -> None:
    rule = Noting((0.9, 0.1))
    streams = Stream("whole", NETWORK), Stream("end", NETWORK, last_tokens)
    session = MixtureDrafterModel(streams, rule).new_session()
    draft = draft_of(session, chain(1))
    session.commit(draft.tree.tokens)
    assert not rule.shown
    session.draft(0, OFF, GREEDY, TorchRng(0))
    session.commit([0], None)
    assert not rule.shown


def run(
    session: MixtureDrafter, num_steps: int, params: SamplingParams = GREEDY
) -> list[dict[str, float]]:
    """Drafts on and on, and returns the weights of each draft."""
    target = TableModel(VOCAB_SIZE)
    session.prefill(PROMPT)
    weights = []
    for _ in range(num_steps):
        draft = session.draft(1, chain(1), params, TorchRng(0))
        assert draft.stream_weights is not None
        weights.append(dict(draft.stream_weights))
        session.commit([1], Scored(draft, scored(draft, target).target, (0,)))
    return weights


def test_a_stream_without_weight_is_left_out_and_tried_again() -> None:
    streams = Stream("whole", NETWORK), Stream("end", OTHER)
    session = MixtureDrafterModel(streams, Noting((0.99, 0.01))).new_session()
    weights = run(session, RETRY_STEPS + TRIAL_STEPS + 1)
    is_in = [each["end"] > 0 for each in weights]
    trials = [True] * TRIAL_STEPS
    assert is_in == [*trials, *[False] * (RETRY_STEPS - TRIAL_STEPS), *trials, False]
    assert weights[TRIAL_STEPS] == {"whole": 1.0, "end": 0.0}


def test_a_stream_that_was_left_out_reads_what_it_missed() -> None:
    streams = Stream("whole", NETWORK), Stream("end", OTHER)
    rule = Noting((0.99, 0.01))
    session = MixtureDrafterModel(streams, rule).new_session()
    run(session, RETRY_STEPS + 1)
    text = Prompt((*PROMPT.token_ids[:-1], *[1] * (RETRY_STEPS + 1)))
    expected = to_probs(rows_of(text, OTHER), SAMPLING)
    assert rule.shown[-1].draft_rows[0][1] == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_stream_that_did_not_run_is_taken_to_have_said_what_the_mixture_said() -> None:
    streams = Stream("whole", NETWORK), Stream("end", NETWORK, last_tokens), Stream("x", OTHER)
    rule = Noting((0.5, 0.49, 0.01))
    run(MixtureDrafterModel(streams, rule, clock=None).new_session(), TRIAL_STEPS + 1)
    shown = rule.shown[-1]
    assert len(shown.draft_rows[0]) == 2
    probs = shown.best_probs
    mixed = (0.5 * probs[0] + 0.49 * probs[1]) / 0.99
    assert probs[2] == pytest.approx(mixed, abs=1e-6)


class Timed(TinyNetwork):
    """A network that takes a second for each stream that runs, on a clock of its own."""

    now = 0.0

    def extend_all(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        self.now += len(parts)
        return super().extend_all(parts)


def test_a_stream_that_takes_more_than_it_brings_is_left_out_and_tried_again() -> None:
    network = Timed(RecurrentModel(VOCAB_SIZE, seed=1))
    streams = Stream("whole", network), Stream("end", network, last_tokens)
    model = MixtureDrafterModel(streams, FixedWeights((0.6, 0.4)), clock=lambda: network.now)
    is_in = [each["end"] > 0 for each in run(model.new_session(), RETRY_STEPS + TRIAL_STEPS + 1)]
    trials = [True] * TRIAL_STEPS
    assert is_in == [*trials, *[False] * (RETRY_STEPS - TRIAL_STEPS), *trials, False]
    by_weight = MixtureDrafterModel(streams, FixedWeights((0.6, 0.4)), clock=None)
    assert all(each["end"] > 0 for each in run(by_weight.new_session(), TRIAL_STEPS + 9))


def test_streams_that_read_nothing_of_their_own_take_no_weight_from_the_others() -> None:
    streams = Stream("whole", NETWORK), Stream("same", NETWORK)
    session = MixtureDrafterModel(streams, FixedWeights((0, 1)), clock=None).new_session()
    assert run(session, TRIAL_STEPS + 1)[-1] == {"whole": 1.0, "same": 0.0}


def test_a_text_begins_with_the_weights_that_earlier_texts_ended_with() -> None:
    streams = Stream("whole", NETWORK), Stream("end", OTHER)
    model = MixtureDrafterModel(streams, least_weight=0.0, clock=None)
    first = run(model.new_session(), 5)
    assert first[0] == {"whole": 0.5, "end": 0.5}
    later = run(model.new_session(), 1)[0]
    assert later["whole"] == pytest.approx((first[-1]["whole"] + 0.15) / 1.3, abs=0.1)
    assert (later["whole"] > 0.5) is (first[-1]["whole"] > 0.5)


def test_a_text_with_one_stream_teaches_none() -> None:
    model = MixtureDrafterModel((Stream("whole", NETWORK), Stream("same", NETWORK)), clock=None)
    run(model.new_session(), 3)
    assert model.first_weights.weights(2).tolist() == [0.5, 0.5]


def test_a_generation_says_what_streams_counted_for() -> None:
    target = NetworkTargetModel(OTHER)
    streams = Stream("other", OTHER), Stream("bad", TinyNetwork(TableModel(VOCAB_SIZE)))
    decoder = SpeculativeDecoder(
        Pair(target, MixtureDrafterModel(streams, least_weight=0.0, clock=None)), search="chain(2)"
    )
    generation = decoder.generate(PROMPT, max_new_tokens=40)
    weights = [step.stream_weights for step in generation.steps if step.stream_weights]
    assert weights[0] == {"other": 0.5, "bad": 0.5}
    assert generation.stream_weights["other"] == pytest.approx(
        sum(each["other"] for each in weights) / len(weights)
    )
    assert generation.stream_weights["other"] > 0.6
    plain = SpeculativeDecoder(Pair(target, NoDrafterModel()))
    assert plain.generate(PROMPT, max_new_tokens=3).stream_weights == {}


def test_a_stream_whose_text_does_not_fit_is_left_out() -> None:
    short = TinyNetwork(RecurrentModel(VOCAB_SIZE, seed=2), context_length=len(PROMPT))
    streams = Stream("whole", NETWORK), Stream("short", short)
    session = MixtureDrafterModel(streams).new_session()
    draft = draft_of(session, chain(1))
    assert draft.stream_weights == {"whole": 0.5, "short": 0.5}
    draft = draft_of(session, chain(2))
    assert draft.stream_weights == {"whole": 1.0, "short": 0.0}
    session.prefill(Prompt((*PROMPT.token_ids, 1)))
    assert session.draft(1, chain(1), GREEDY, TorchRng(0)).stream_weights == draft.stream_weights


def test_nothing_is_drafted_where_no_stream_fits() -> None:
    short = TinyNetwork(RecurrentModel(VOCAB_SIZE, seed=2), context_length=3)
    session = MixtureDrafterModel((Stream("short", short),)).new_session()
    draft = draft_of(session, chain(3))
    assert len(draft.tree) == 1
    session.commit([1])
    assert len(session.draft(0, chain(1), GREEDY, TorchRng(0)).tree) == 1


def test_streams_need_names_and_a_rule_for_as_many() -> None:
    with pytest.raises(InvalidInputError, match="names of their own, got none"):
        MixtureDrafterModel(())
    with pytest.raises(InvalidInputError, match=r"\['a', 'a'\]"):
        MixtureDrafterModel((Stream("a", NETWORK), Stream("a", OTHER)))
    with pytest.raises(InvalidInputError, match="2 weights were given for 1"):
        MixtureDrafterModel((Stream("a", NETWORK),), FixedWeights((1, 2)))
    with pytest.raises(InvalidInputError, match="least weight"):
        MixtureDrafterModel((Stream("a", NETWORK),), least_weight=1.0)


def test_a_draft_that_was_interrupted_can_be_repeated() -> None:
    class Interrupted(TinyNetwork):
        num_calls = 0

        def extend_all(self, parts: Sequence[Part]) -> list[torch.Tensor]:
            Interrupted.num_calls += 1
            if Interrupted.num_calls == 2:
                raise KeyboardInterrupt
            return super().extend_all(parts)

    streams = Stream("a", NETWORK), Stream("b", Interrupted(RecurrentModel(VOCAB_SIZE, seed=2)))
    session = MixtureDrafterModel(streams).new_session()
    session.prefill(PROMPT)
    with pytest.raises(KeyboardInterrupt):
        session.draft(1, chain(3), GREEDY, TorchRng(0))
    draft = session.draft(1, chain(3), GREEDY, TorchRng(0))
    streams = Stream("a", NETWORK), Stream("b", OTHER)
    assert draft.tree == draft_of(MixtureDrafterModel(streams).new_session(), chain(3)).tree


def test_greedy_text_is_the_targets_own_while_streams_come_and_go() -> None:
    target = NetworkTargetModel(TinyNetwork(RecurrentModel(VOCAB_SIZE, seed=3)))
    streams = Stream("whole", NETWORK), Stream("end", OTHER, last_tokens)
    model = MixtureDrafterModel(streams, least_weight=0.4)

    def text(shape: Shape) -> list[int]:
        steps = generate(
            target.new_session(),
            model.new_session(),
            PROMPT,
            search=StaticSearch(shape),
            params=GREEDY,
            rng=TorchRng(0),
            max_length=100,
        )
        return [token for step in steps for token in step.emitted]

    plain = text(OFF)
    assert text(LevelWidths((2, 1))) == plain
    assert text(BestFirst(2, 2, 3)) == plain
