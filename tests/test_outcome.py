"""The counts that users ask for, on steps made by hand."""

from dataclasses import replace

import pytest

from treesnake.outcome import (
    Acceptance,
    FinishReason,
    Generation,
    Step,
    StepSeconds,
    acceptance_by_position,
)
from treesnake.shape import chain
from treesnake.tree import TokenTree

SECONDS = StepSeconds(draft_s=0.5, score_s=1.0, accept_s=0.25, commit_s=0.25)
CHAIN = TokenTree.chain([9, 1, 2, 3])
BRANCHED = TokenTree.of([9, 1, 2, 3, 4], [-1, 0, 0, 2, 2])
ANCHOR = TokenTree.chain([9])


def make_step(tree: TokenTree, path: tuple[int, ...], num_emitted: int | None = None) -> Step:
    acceptance = Acceptance(path, token=7)
    emitted = tuple(acceptance.emitted(tree))
    return Step(chain(3), tree, acceptance, emitted[:num_emitted], SECONDS)


def test_an_acceptance_emits_its_path_and_one_token_more() -> None:
    assert Acceptance((0, 2, 4), 7).emitted(BRANCHED) == [2, 4, 7]
    assert Acceptance((0,), 7).emitted(BRANCHED) == [7]


def test_a_step_counts_what_became_output() -> None:
    step = make_step(CHAIN, (0, 1, 2))
    assert (step.num_drafted, step.num_accepted) == (3, 2)
    assert step.emitted == (1, 2, 7)


@pytest.mark.parametrize(("num_emitted", "num_accepted"), [(1, 1), (2, 2), (3, 2)])
def test_tokens_beyond_a_cut_are_not_counted(num_emitted: int, num_accepted: int) -> None:
    assert make_step(CHAIN, (0, 1, 2), num_emitted).num_accepted == num_accepted


def test_a_generation_sums_its_steps() -> None:
    steps = (make_step(CHAIN, (0, 1, 2)), make_step(BRANCHED, (0,)), make_step(ANCHOR, (0,)))
    generation = Generation((1, 2, 7, 7, 7), None, steps, FinishReason.LENGTH)
    assert generation.num_drafted == 3 + 4
    assert generation.num_accepted == 2
    assert generation.num_emitted == 5
    assert generation.mean_tokens_per_step == pytest.approx(5 / 3)
    assert generation.mean_accepted_per_step == pytest.approx(2 / 3)
    assert generation.decode_s == pytest.approx(6.0)
    assert generation.tokens_per_s == pytest.approx(5 / 6)


def test_prefill_is_no_part_of_decoding() -> None:
    step = make_step(ANCHOR, (0,))
    first, second = (
        replace(step, seconds=replace(SECONDS, prefill_s=seconds)) for seconds in (3.0, 1.0)
    )
    generation = Generation((7, 7, 7), None, (first, second, step), FinishReason.LENGTH)
    assert generation.prefill_s == 4.0
    assert generation.decode_s == pytest.approx(6.0)


def test_every_step_emits_one_token_more_than_it_accepts() -> None:
    steps = (make_step(CHAIN, (0, 1)), make_step(BRANCHED, (0, 2, 3)))
    generation = Generation((1, 7, 2, 3, 7), None, steps, FinishReason.LENGTH)
    assert generation.mean_tokens_per_step == generation.mean_accepted_per_step + 1


def test_acceptance_by_position_counts_steps_that_drafted_so_deep() -> None:
    steps = [make_step(CHAIN, (0, 1, 2)), make_step(BRANCHED, (0, 2)), make_step(ANCHOR, (0,))]
    assert acceptance_by_position(steps) == [1.0, 0.5, 0.0]
    generation = Generation((), None, tuple(steps), FinishReason.CANCELLED)
    assert generation.acceptance_by_position == [1.0, 0.5, 0.0]


def test_a_generation_without_steps_has_ratios_of_zero() -> None:
    nothing = Generation((), None, (), FinishReason.LENGTH)
    assert nothing.mean_tokens_per_step == nothing.tokens_per_s == 0.0
    assert nothing.acceptance_by_position == []
