"""Measures what drafting and scoring take, in the loop itself and in seconds."""

import statistics
from collections.abc import Sequence
from time import perf_counter

from treesnake.continuation import continue_text
from treesnake.draft import Draft, Scored
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter, PairModel, Target
from treesnake.sampling import Rng, SamplingParams, TorchRng
from treesnake.search.costs import CostTable
from treesnake.search.static import StaticSearch
from treesnake.shape import BestFirst, FixedTree, Shape
from treesnake.tree import TokenTree

NODES = (1, 2, 4, 8, 16, 32, 64)
WIDTHS = (1, 2, 4, 8, 16)
LENGTHS = (64, 512)
NUM_ROUNDS = 5
LEVELS = 3
"""Levels between the two drafts whose difference is what these levels take."""

LEAST_S = 1e-7
"""What anything takes at least: the difference of two times may come out as nothing."""


def measure_costs(
    pair: PairModel,
    prompt: Prompt,
    *,
    lengths: Sequence[int] = LENGTHS,
    num_rounds: int = NUM_ROUNDS,
) -> CostTable:
    """Measures a pair on this machine, as it is set and with what else it does.

    Args:
        pair: the models.
        prompt: some text, repeated to the lengths; what is in it does not matter.
        lengths: of the context, in tokens; those that the target has no room for are left out.
        num_rounds: the median of so many is taken, after one that is not counted.
    """
    score_s: dict[int, dict[int, float]] = {}
    draft_s: dict[int, dict[int, float]] = {}
    for length in lengths:
        target, drafter = pair.new_sessions()
        room = target.context_length
        if score_s and room is not None and room < length + max(NODES) + num_rounds + 2:
            continue
        text = (prompt.token_ids * (length // len(prompt) + 1))[:length]
        score_s[length] = _score_costs(target, Prompt(text), num_rounds)
        draft_s[length] = _draft_costs(drafter, Prompt(text), num_rounds)
    return CostTable(score_s, draft_s)


def _score_costs(target: Target, prompt: Prompt, num_rounds: int) -> dict[int, float]:
    """Runs the loop with trees of each size, whose tokens are guesses at nothing."""
    costs = {}
    for num_nodes in NODES:
        steps = continue_text(
            target,
            _Guesses(),
            prompt,
            SamplingParams(),
            search=StaticSearch(FixedTree((0,) * (num_nodes - 1))),
            max_new_tokens=1000,
        ).steps
        taken = [
            step.seconds.work_s - step.seconds.draft_s
            for _, step in zip(range(num_rounds + 1), steps, strict=False)
        ]
        costs[num_nodes] = max(statistics.median(taken[1:]), LEAST_S)
    return costs


def _draft_costs(drafter: Drafter, prompt: Prompt, num_rounds: int) -> dict[int, float]:
    """Times drafts of two depths, which differ by levels of a known width."""
    drafter.prefill(prompt)
    rng = TorchRng(0)

    def draft_s(shape: Shape) -> float:
        started = perf_counter()
        drafter.draft(prompt.token_ids[-1], shape, SamplingParams(), rng)
        return perf_counter() - started

    costs = {}
    for width in WIDTHS:
        pair = _shapes(width, 1), _shapes(width, 1 + LEVELS)
        rounds = [[draft_s(shape) for shape in pair] for _ in range(num_rounds + 1)]
        shallow, deep = (statistics.median(times) for times in zip(*rounds[1:], strict=True))
        costs[width] = max((deep - shallow) / LEVELS, LEAST_S)
    return costs


def _shapes(width: int, depth: int) -> Shape:
    """Returns a tree that expands its width at every level but the first, for all are kept."""
    return BestFirst(width, depth, width * width * depth)


class _Guesses:
    """A drafter that fills any fixed tree with tokens from 0 on, in no time."""

    def prefill(self, prompt: Prompt) -> None:
        """Needs nothing of the prompt."""

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Returns the shape with the tokens 0, 1, 2 and so on."""
        fixed = shape.as_tree()
        parents = () if fixed is None else fixed.parents
        return Draft.chosen(TokenTree.of([anchor, *range(len(parents))], [-1, *parents]))

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Needs nothing of the text."""
