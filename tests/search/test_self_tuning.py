"""The search that tunes itself, in simulated time, where the best is known."""

import random
from dataclasses import replace
from functools import lru_cache

import pytest

from treesnake.evaluation.simulation.comparison import best_fixed, rate, run
from treesnake.evaluation.simulation.machines import BIG_GPU, CPU, MACHINES
from treesnake.evaluation.simulation.replay import Machine, replay
from treesnake.evaluation.simulation.synthetic import synthetic_trace
from treesnake.evaluation.simulation.trace import Trace
from treesnake.outcome import Acceptance, Step, StepSeconds
from treesnake.protocols import SharedSearch, TreeSearch
from treesnake.search.arms import ARMS
from treesnake.search.costs import CostTable, LearnedCosts, ReadingCosts
from treesnake.search.self_tuning import SelfTuningSearch
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, FixedTree, Priced, Shape, chain, is_off
from treesnake.tree import TokenTree


def confident(chance: random.Random) -> float:
    return chance.betavariate(2, 1)


def doubtful(chance: random.Random) -> float:
    return chance.betavariate(0.6, 1.6)


def now_and_then_sure(chance: random.Random) -> float:
    return 0.98 if chance.random() < 0.5 else 0.1


def always_sure(chance: random.Random) -> float:
    return 0.97


GOOD = [synthetic_trace(120, confident, truth=0.9, seed=seed) for seed in range(2)]
POOR = [synthetic_trace(120, doubtful, truth=0.9, seed=seed) for seed in range(2)]
USELESS = [synthetic_trace(120, confident, truth=0.0, seed=seed) for seed in range(2)] * 5


def rate_of(
    traces: list[Trace], costs: CostTable, search: SharedSearch, *, num_texts: int = 1
) -> float:
    """Returns the rate where each text has a session, as in a server."""
    machine = Machine(costs, noise=0.03, num_texts=num_texts)
    return rate([replay(trace, search.new_session(), machine) for trace in traces])


def watch(traces: list[Trace], costs: CostTable, watched: TreeSearch) -> None:
    """Runs one session over one text after the other, as in a conversation."""
    machine = Machine(costs, noise=0.03)
    for trace in traces:
        replay(trace, watched, machine)


def scaled(costs: CostTable, *, score: float = 1.0, draft: float = 1.0) -> CostTable:
    return CostTable(
        *(
            {length: {count: each * factor for count, each in table.items()}}
            for factor, tables in ((score, costs.score_s), (draft, costs.draft_s))
            for length, table in tables.items()
        )
    )


@lru_cache
def best_rate(machine: str) -> float:
    """Returns the rate of the best fixed shape in hindsight."""
    searches = {str(shape): lambda shape=shape: StaticSearch(shape) for shape in ARMS}
    results = run(GOOD + POOR, searches, MACHINES[machine], noise=0.0)
    return rate(results[best_fixed(results, list(searches))])


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("is_calibrated", [True, False], ids=["calibrated", "learning"])
def test_it_is_as_fast_as_the_best_fixed_shape_in_hindsight(
    machine: str, is_calibrated: bool
) -> None:
    costs = MACHINES[machine]
    tuned = rate_of(GOOD + POOR, costs, SelfTuningSearch(costs if is_calibrated else None))
    assert tuned >= 0.97 * best_rate(machine)


@pytest.mark.parametrize(("machine", "is_calibrated"), [("cpu", True), ("big gpu", False)])
def test_with_a_useless_drafter_it_is_as_fast_as_plain_decoding(
    machine: str, is_calibrated: bool
) -> None:
    costs = MACHINES[machine]
    plain = rate_of(USELESS, costs, StaticSearch(OFF))
    tuned = rate_of(USELESS, costs, SelfTuningSearch(costs if is_calibrated else None))
    assert tuned >= 0.97 * plain


WRONG = {
    "scoring ten times too slow": scaled(CPU, score=10),
    "scoring ten times too fast": scaled(CPU, score=0.1),
    "drafting ten times too slow": scaled(CPU, draft=10),
    "drafting ten times too fast": scaled(CPU, draft=0.1),
    "another machine's": BIG_GPU,
}


@pytest.mark.parametrize("table", WRONG.values(), ids=WRONG)
def test_a_table_that_is_wrong_does_not_hurt_for_long(table: CostTable) -> None:
    right = rate_of(GOOD, CPU, SelfTuningSearch(CPU))
    assert rate_of(GOOD, CPU, SelfTuningSearch(table)) >= 0.9 * right


@pytest.mark.parametrize("is_calibrated", [True, False], ids=["calibrated", "learning"])
def test_each_load_has_the_trees_that_pay_under_it(is_calibrated: bool) -> None:
    """Alone drafting pays here; where eight texts share passes, their nodes cost too much."""
    search = SelfTuningSearch(CPU if is_calibrated else None)
    alone, plain = (rate_of(GOOD, CPU, each) for each in (search, StaticSearch(OFF)))
    assert alone > 1.2 * plain
    for _ in range(3):  # texts that come and go
        crowded = rate_of(GOOD[:1], CPU, search, num_texts=8)
        alone_again = rate_of(GOOD[1:], CPU, search)
    assert crowded > 0.9 * rate_of(GOOD[:1], CPU, StaticSearch(OFF), num_texts=8)
    assert alone_again > 0.97 * rate_of(GOOD[1:], CPU, SelfTuningSearch(CPU))


def test_it_follows_a_text_that_changes() -> None:
    search = SelfTuningSearch(CPU)
    rate_of(USELESS[:2], CPU, search)
    after = rate_of(GOOD, CPU, search)
    assert after >= 0.85 * rate_of(GOOD, CPU, SelfTuningSearch(CPU))


class Watched:
    """A session whose steps can be looked at."""

    def __init__(self, search: SharedSearch) -> None:
        self._search = search.new_session()
        self.steps: list[Step] = []

    def choose(self, context_length: int) -> Shape:
        return self._search.choose(context_length)

    def observe(self, step: Step) -> None:
        self.steps.append(step)
        self._search.observe(step)


def steps_of(costs: CostTable | None, traces: list[Trace], machine: CostTable) -> list[Step]:
    watched = Watched(SelfTuningSearch(costs))
    watch(traces, machine, watched)
    return watched.steps


def test_it_is_off_nearly_always_where_drafting_loses() -> None:
    sizes = [step.num_drafted for step in steps_of(None, USELESS[:4], CPU)]
    assert sizes.count(0) > 0.8 * len(sizes)
    assert any(sizes[len(sizes) // 2 :]), "it looks now and then"


def test_it_is_soon_off_when_texts_become_others() -> None:
    before = [synthetic_trace(120, always_sure, seed=seed) for seed in range(6)]
    steps = steps_of(None, before + USELESS[:2], CPU)
    after = steps[-sum(map(len, USELESS[:2])) :]
    num_drafting = sum(step.num_drafted > 0 for step in after)
    assert num_drafting < 100, "what was fast on earlier texts is not believed for long"


def test_large_trees_are_for_machines_on_which_nodes_are_free() -> None:
    poor = [synthetic_trace(120, doubtful, truth=0.9, seed=seed) for seed in range(6)]
    on_gpu, on_cpu = (
        [
            step.num_drafted
            for first in (0, 2, 4)
            for step in steps_of(costs, poor[first : first + 2], costs)[-40:]
        ]
        for costs in (BIG_GPU, CPU)
    )
    assert max(on_cpu) < 12
    assert sum(on_gpu) > 3 * sum(on_cpu)


def test_it_follows_the_drafters_confidence_where_there_is_any() -> None:
    uneven = [synthetic_trace(480, now_and_then_sure, seed=seed) for seed in range(6)]
    steps = [step for first in (0, 2, 4) for step in steps_of(CPU, uneven[first : first + 2], CPU)]
    assert sum(isinstance(step.shape, Priced) for step in steps) > len(steps) / 2


def test_without_confidence_it_draws_fixed_trees() -> None:
    search = SelfTuningSearch(CPU)

    class Unsure(Watched):
        def observe(self, step: Step) -> None:
            super().observe(replace(step, node_probs=None))

    unsure = Unsure(search)
    watch(GOOD, CPU, unsure)
    kinds = [type(step.shape) for step in unsure.steps]
    assert kinds.count(Priced) <= 4, "only until it was seen that there is none"
    assert kinds.count(FixedTree) > len(kinds) / 2


def step_beside_lookup(shape: Shape, *, has_guess: bool) -> Step:
    """A step with a model that is dear and never right, beside a lookup that is free and right."""
    is_priced = isinstance(shape, Priced)
    asks_model = shape.depth > 0 and not (is_priced and (has_guess or shape.level_prices[0] > 1))
    guesses = has_guess and shape.depth > 0
    num_drafted = asks_model + guesses
    tree = TokenTree.of(range(1 + num_drafted), [-1] + [0] * num_drafted)
    path = (0, num_drafted) if guesses else (0,)
    return Step(
        shape,
        tree,
        Acceptance(path, 9),
        (9,) * len(path),
        StepSeconds(1.0 * asks_model, 1.0 + 0.05 * num_drafted, 0.0, 0.0),
        node_probs=(1.0, *[0.5] * asks_model, *[0.9] * guesses),
        num_expanded=(1,) if asks_model else (),
    )


def test_off_has_the_guesses_for_which_nothing_is_run() -> None:
    search, chance = SelfTuningSearch().new_session(), random.Random(0)
    steps, length = [], 10
    for _ in range(600):
        step = step_beside_lookup(search.choose(length), has_guess=chance.random() < 0.5)
        search.observe(step)
        steps.append(step)
        length += len(step.emitted)
    late = steps[200:]
    assert sum(step.seconds.draft_s > 0 for step in late) < 0.05 * len(late)
    seconds = sum(step.seconds.total_s for step in late)
    assert sum(len(step.emitted) for step in late) / seconds > 0.95 * 1.5 / 1.025


def test_free_guesses_that_come_while_drafting_is_off_are_seen() -> None:
    search, length = SelfTuningSearch().new_session(), 10
    num_free = 0
    for number in range(220):
        step = step_beside_lookup(search.choose(length), has_guess=number >= 180)
        search.observe(step)
        length += len(step.emitted)
        num_free += number >= 180 and len(step.emitted) > 1
    assert num_free == 40


def test_a_first_step_that_compiles_for_long_is_forgotten() -> None:
    class Slow(Watched):
        def observe(self, step: Step) -> None:
            if len(self.steps) < 2:
                step = replace(step, seconds=StepSeconds(20.0, 10.0, 0.0, 0.0))
            super().observe(step)

    slow = Slow(SelfTuningSearch())
    watch(GOOD, CPU, slow)
    late = slow.steps[len(slow.steps) // 2 :]
    assert sum(step.num_drafted > 0 for step in late) > len(late) / 2


def test_a_text_begins_with_what_others_taught() -> None:
    search = SelfTuningSearch(BIG_GPU)
    assert search.new_session().choose(10) == OFF, "nothing is known yet"
    for trace in GOOD:
        replay(trace, search.new_session(), Machine(BIG_GPU))
    assert search.new_session().choose(10).num_drafted > 4


def test_sessions_side_by_side_know_each_its_own_text(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[tuple[int, int]] = []
    observe = LearnedCosts.observe

    def noting(costs: LearnedCosts, step: Step, context_length: int, *, num_behind: int) -> float:
        learned.append((context_length, num_behind))
        return observe(costs, step, context_length, num_behind=num_behind)

    monkeypatch.setattr(LearnedCosts, "observe", noting)
    search = SelfTuningSearch()
    sessions = {length: search.new_session() for length in (10, 1000)}
    for length, session in sessions.items():  # plain, each in the other's middle
        session.choose(length)
    for length, session in sessions.items():
        session.observe(step_beside_lookup(OFF, has_guess=False))
        session.choose(length + 1)
    for session in sessions.values():
        session.observe(step_beside_lookup(chain(1), has_guess=False))
    assert learned == [(10, 0), (1000, 0), (11, 1), (1001, 1)]


def test_another_text_in_a_session_leaves_the_drafter_behind_in_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = SelfTuningSearch().new_session()
    session.choose(10)
    session.observe(step_beside_lookup(OFF, has_guess=False))
    session.choose(50)
    behind: list[int] = []
    observe = LearnedCosts.observe

    def noting(costs: LearnedCosts, step: Step, context_length: int, *, num_behind: int) -> float:
        behind.append(num_behind)
        return observe(costs, step, context_length, num_behind=num_behind)

    monkeypatch.setattr(LearnedCosts, "observe", noting)
    session.observe(step_beside_lookup(chain(1), has_guess=False))
    assert behind == [0]


def test_time_in_a_queue_teaches_nothing() -> None:
    class Queued(Watched):
        def observe(self, step: Step) -> None:
            super().observe(replace(step, seconds=replace(step.seconds, queued_s=9.0)))

    alone, queued = Watched(SelfTuningSearch(CPU)), Queued(SelfTuningSearch(CPU))
    for watched in (alone, queued):
        watch(GOOD, CPU, watched)
    assert [step.shape for step in alone.steps] == [step.shape for step in queued.steps]


def read_first(step: Step, seconds: float) -> Step:
    """The step, before which the drafter read the prompt."""
    return replace(step, seconds=replace(step.seconds, prefill_s=seconds))


def drafted_step(shape: Shape, *, is_right: bool = True) -> Step:
    """A step whose draft of one token takes a fifth of a second, and scoring it one."""
    step = step_beside_lookup(shape, has_guess=False)
    if is_off(shape):
        return step
    step = replace(step, seconds=StepSeconds(0.2, 1.05, 0.0, 0.0))
    return replace(step, acceptance=Acceptance((0, 1), 9), emitted=(9, 9)) if is_right else step


def answer_where_reading_takes(
    seconds: float, search: SharedSearch, *, num_tokens: int
) -> list[Step]:
    """An answer in which a drafter guesses every second token, once it has read the prompt."""
    session = search.new_session()
    steps: list[Step] = []
    length, has_read = 1000, False
    while length < 1000 + num_tokens:
        step = drafted_step(session.choose(length))
        if not is_off(step.shape) and not has_read:
            step, has_read = read_first(step, seconds), True
        session.observe(step)
        steps.append(step)
        length += len(step.emitted)
    return steps


def num_read(steps: list[Step]) -> int:
    return sum(step.seconds.prefill_s > 0 for step in steps)


def test_a_prompt_is_read_for_a_draft_where_that_pays_in_the_whole_answer() -> None:
    """A draft saves a third of a second a token: it pays for six seconds in 60 tokens, not in 6."""
    for num_tokens, reads in ((60, True), (6, False)):
        search = SelfTuningSearch()
        for _ in range(4):
            answer_where_reading_takes(6.0, search, num_tokens=num_tokens)
        steps = [answer_where_reading_takes(6.0, search, num_tokens=num_tokens) for _ in range(8)]
        assert [num_read(each) for each in steps] == [int(reads)] * 8


def test_an_answer_that_goes_on_for_longer_than_any_other_pays_for_reading_at_last() -> None:
    search = SelfTuningSearch()
    for _ in range(12):
        answer_where_reading_takes(6.0, search, num_tokens=6)
    steps = answer_where_reading_takes(6.0, search, num_tokens=100)
    first = next(number for number, step in enumerate(steps) if step.seconds.prefill_s)
    assert 6 < first < 40


def test_reading_costs_are_those_of_prompts_of_like_length() -> None:
    costs = ReadingCosts()
    costs.observe(64, 0.5)
    assert costs.seconds(0) == 0
    assert costs.seconds(32) == pytest.approx(0.25)
    assert 0.5 < costs.seconds(1000) < 0.5 * 1000 / 64, "it may read the end alone"
    costs.observe(1024, 0.5)
    assert costs.seconds(1024) == pytest.approx(0.5)


def test_in_a_conversation_only_what_is_new_is_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(ReadingCosts, "observe", lambda _, num, seconds: read.append(num))
    session, length = SelfTuningSearch().new_session(), 1000
    for _ in range(3):
        for _ in range(8):
            step = drafted_step(session.choose(length))
            session.observe(step)
            length += len(step.emitted)
        length += 30  # the next question
    assert read == [read[0], 30, 30]
    assert read[0] >= 1000


def test_each_answer_of_a_conversation_has_a_length_of_its_own() -> None:
    search = SelfTuningSearch()
    session, length = search.new_session(), 1000
    for _ in range(3):
        for _ in range(8):
            step = drafted_step(session.choose(length))
            session.observe(step)
            length += len(step.emitted)
        length += 30  # the next question
    lengths = search._knowledge.answers
    assert lengths.expected_rest(lengths.begin()) == pytest.approx((length - 1000 - 90) / 3)
    assert session._text.answer.num_tokens < 20


def test_texts_side_by_side_have_each_its_own_rates() -> None:
    """One that is hard to guess does not switch another one off, nor does a new one."""
    search = SelfTuningSearch()
    for _ in range(3):
        answer_where_reading_takes(0.0, search, num_tokens=60)
    easy, hard = search.new_session(), search.new_session()
    lengths, drafted = {easy: 10, hard: 10}, {easy: 0, hard: 0}
    for _ in range(60):
        for session, is_right in ((easy, True), (hard, False)):
            step = drafted_step(session.choose(lengths[session]), is_right=is_right)
            session.observe(step)
            lengths[session] += len(step.emitted)
            drafted[session] += not is_off(step.shape)
        search.new_session()
    assert drafted[easy] >= 56
    assert drafted[hard] < 25
