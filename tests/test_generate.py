"""The loop step by step: what it asks of the roles, in which order, and what it reports.

Its laws, equal text and equal distributions, are in tests/laws.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from treesnake import clock
from treesnake.acceptance.greedy import greedy
from treesnake.chance import TorchRng
from treesnake.clock import book_sharing, book_wait
from treesnake.draft import Draft, Scored
from treesnake.errors import LosslessnessError
from treesnake.generate import generate
from treesnake.outcome import FinishReason, Step, StepSeconds
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter, Target
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import OFF, Shape, chain
from treesnake.stopping import Cut, EndTokens, StopRule
from treesnake.tree import TokenTree

VOCAB_SIZE = 10
PROMPT = Prompt((3, 4))


@dataclass
class CountingTarget:
    """Says the next number after each number, and notes what it is told."""

    calls: list[object] = field(default_factory=list)
    vocab_size: int = VOCAB_SIZE
    context_length: int | None = None

    def prefill(self, prompt: Prompt) -> None:
        self.calls.append(("prefill", prompt.token_ids))

    def score(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
        self.calls.append(("score", tuple(tree.tokens)))
        following = (torch.tensor(tree.tokens) + 1) % VOCAB_SIZE
        return torch.nn.functional.one_hot(following, VOCAB_SIZE).float()

    def commit(self, path: Sequence[int]) -> None:
        self.calls.append(("commit", tuple(path)))


@dataclass
class CountingDrafter:
    """Drafts the right numbers, but for those that it gets wrong."""

    wrong: frozenset[int] = frozenset()
    calls: list[object] = field(default_factory=list)

    def prefill(self, prompt: Prompt) -> None:
        self.calls.append(("prefill", prompt.token_ids))

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        self.calls.append(("draft", anchor, shape.depth))
        tokens = [(anchor + step) % VOCAB_SIZE for step in range(shape.depth + 1)]
        tokens[1:] = [0 if token in self.wrong else token for token in tokens[1:]]
        return Draft.chosen(TokenTree.chain(tokens))

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        self.calls.append(("commit", tuple(token_ids)))


@dataclass
class NotingSearch:
    """Chooses one shape and notes what it hears."""

    shape: Shape
    chosen_at: list[int] = field(default_factory=list)
    observed: list[Step] = field(default_factory=list)

    def choose(self, context_length: int) -> Shape:
        self.chosen_at.append(context_length)
        return self.shape

    def observe(self, step: Step) -> None:
        self.observed.append(step)


def run(
    target: Target,
    drafter: Drafter,
    search: NotingSearch,
    *,
    num_new: int = 7,
    stop_rules: Sequence[StopRule] = (),
) -> list[Step]:
    return list(
        generate(
            target,
            drafter,
            PROMPT,
            search=search,
            params=SamplingParams(),
            rng=TorchRng(0),
            max_length=len(PROMPT) + num_new,
            stop_rules=stop_rules,
        )
    )


def test_a_step_drafts_scores_accepts_and_commits() -> None:
    target, drafter, search = CountingTarget(), CountingDrafter(), NotingSearch(chain(2))
    steps = run(target, drafter, search)
    assert [step.emitted for step in steps] == [(5,), (6, 7, 8), (9, 0, 1)]
    assert target.calls == [
        ("prefill", (3, 4)),
        ("score", (4,)),
        ("commit", (0,)),
        ("score", (5, 6, 7)),
        ("commit", (0, 1, 2)),
        ("score", (8, 9, 0)),
        ("commit", (0, 1, 2)),
    ]
    assert drafter.calls == [
        ("prefill", (3, 4)),
        ("commit", (4,)),
        ("draft", 5, 2),
        ("commit", (5, 6, 7)),
        ("draft", 8, 2),
        ("commit", (8, 9, 0)),
    ]


def test_the_first_token_waits_for_no_drafter() -> None:
    drafter = CountingDrafter()
    run(CountingTarget(), drafter, NotingSearch(chain(2)), stop_rules=[EndTokens([5])])
    assert drafter.calls == []


def test_after_a_wrong_token_the_targets_own_one_follows() -> None:
    drafter = CountingDrafter(wrong=frozenset({7}))
    steps = run(CountingTarget(), drafter, NotingSearch(chain(3)), num_new=5)
    assert [step.emitted for step in steps] == [(5,), (6, 7), (8, 9)]
    assert [step.num_accepted for step in steps] == [0, 1, 1]
    assert steps[1].acceptance.path == (0, 1)


def test_the_search_hears_of_every_step_that_it_chose() -> None:
    search = NotingSearch(chain(2))
    steps = run(CountingTarget(), CountingDrafter(), search, num_new=8)
    assert search.observed == steps[1:]
    assert search.chosen_at == [3, 6, 9]
    shapes = [step.shape for step in steps]
    assert shapes == [OFF, chain(2), chain(2), OFF], "clipped to the room left"


def test_no_draft_reaches_beyond_the_longest_length() -> None:
    drafter = CountingDrafter()
    steps = run(CountingTarget(), drafter, NotingSearch(chain(8)), num_new=3)
    assert drafter.calls[2] == ("draft", 5, 1)
    assert [step.emitted for step in steps] == [(5,), (6, 7)]


@pytest.mark.parametrize(("end", "kept"), [(6, (6,)), (7, (6, 7)), (8, (6, 7, 8))])
def test_a_cut_inside_a_path_commits_what_is_kept_but_the_last(
    end: int, kept: tuple[int, ...]
) -> None:
    target, drafter = CountingTarget(), CountingDrafter()
    (_, step) = run(target, drafter, NotingSearch(chain(2)), stop_rules=[EndTokens([end])])
    assert (step.emitted, step.finish_reason) == (kept, FinishReason.END_TOKEN)
    assert step.acceptance.path == (0, 1, 2), "what was decided is told as it was"
    assert target.calls[-1] == ("commit", (0, 1, 2)[: len(kept)])
    assert drafter.calls[-1] == ("commit", (5, 6, 7)[: len(kept)])


def test_a_stop_rule_sees_new_tokens_only() -> None:
    """An end token in the prompt ends nothing, and texts are told in two parts."""
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def noting(generated: Sequence[int], emitted: Sequence[int]) -> Cut | None:
        seen.append((tuple(generated), tuple(emitted)))
        return None

    rules = [EndTokens([3, 4]), noting]
    steps = run(CountingTarget(), CountingDrafter(), NotingSearch(chain(2)), stop_rules=rules)
    assert sum(len(step.emitted) for step in steps) == 7
    assert seen == [((), (5,)), ((5,), (6, 7, 8)), ((5, 6, 7, 8), (9, 0, 1))]


def test_nothing_runs_before_it_is_asked_for() -> None:
    target = CountingTarget()
    steps = generate(
        target,
        CountingDrafter(),
        PROMPT,
        search=NotingSearch(OFF),
        params=SamplingParams(),
        rng=TorchRng(0),
        max_length=5,
    )
    assert target.calls == []
    next(iter(steps))
    assert target.calls == [("prefill", (3, 4)), ("score", (4,)), ("commit", (0,))]


def test_seconds_are_told_by_part() -> None:
    (_, step, *_) = run(CountingTarget(), CountingDrafter(), NotingSearch(chain(2)))
    seconds = step.seconds
    parts = (seconds.draft_s, seconds.score_s, seconds.accept_s, seconds.commit_s)
    assert all(part >= 0 for part in parts)
    assert seconds.total_s == seconds.work_s == pytest.approx(sum(parts))
    assert seconds.queued_s == 0


def test_time_in_a_queue_is_no_part_of_drafting_or_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    class Time:
        now = 0.0

        def wait(self, seconds: float) -> None:
            self.now += seconds
            book_wait(self.now - seconds)

    time = Time()
    monkeypatch.setattr(clock, "perf_counter", lambda: time.now)

    class QueuingTarget(CountingTarget):
        def score(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
            time.wait(8)
            time.now += 2
            return super().score(tree)

    class QueuingDrafter(CountingDrafter):
        def prefill(self, prompt: Prompt) -> None:
            time.wait(32)
            time.now += 3

        def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
            time.wait(4)
            time.now += 1
            return super().draft(anchor, shape, params, rng)

    (first, step, *_) = run(QueuingTarget(), QueuingDrafter(), NotingSearch(chain(2)))
    assert first.seconds == StepSeconds(0.0, 2.0, 0.0, 0.0, queued_s=8.0)
    assert step.seconds == StepSeconds(1.0, 2.0, 0.0, 0.0, queued_s=12.0, prefill_s=3.0)
    assert (step.seconds.work_s, step.seconds.total_s) == (3, 15)


def test_a_step_tells_how_many_texts_shared_its_pass() -> None:
    class SharingTarget(CountingTarget):
        def score(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
            book_sharing(4)
            return super().score(tree)

    def shared(target: Target) -> set[int]:
        steps = run(target, CountingDrafter(), NotingSearch(chain(2)))
        return {step.num_texts for step in steps}

    with ThreadPoolExecutor(1) as pool:  # what is booked is that thread's own
        assert pool.submit(shared, SharingTarget()).result() == {4}
    assert shared(CountingTarget()) == {1}


def test_a_rule_that_is_not_exact_for_the_temperature_is_refused() -> None:
    steps = generate(
        CountingTarget(),
        CountingDrafter(),
        PROMPT,
        search=NotingSearch(chain(2)),
        params=SamplingParams(temperature=1.0),
        rng=TorchRng(0),
        max_length=9,
        accept=greedy,
    )
    with pytest.raises(LosslessnessError, match="temperature 0 only"):
        next(iter(steps))
