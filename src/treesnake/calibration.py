"""Measures what drafting and scoring take, in the loop itself and in seconds."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import inf
from time import perf_counter

from treesnake.chance import TorchRng
from treesnake.continuation import continue_text
from treesnake.draft import Draft, Scored
from treesnake.drafters.load import NO_DRAFTER
from treesnake.errors import TreesnakeError
from treesnake.loading.cost_files import CostKey, read_costs
from treesnake.loading.networks import LoadedNetwork
from treesnake.pairs import WARM_UP_TOKENS, warm_up
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter, PairModel, Target
from treesnake.sampling import Rng, SamplingParams
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

FIRST_NODES, FIRST_WIDTHS, FIRST_ROUNDS = (1, 2, 4, 8), (1, 2), 2
"""What is measured while a pair is loaded. The rest is believed to go on as this does."""

FIRST_BUDGET_S = 0.1
"""After so many seconds nothing more is measured while a pair is loaded."""


def known_costs(pair: PairModel, loaded: LoadedNetwork, drafter: str) -> CostTable | None:
    """Returns what a pair that was just loaded takes, as far as is known before its first text.

    Where `treesnake calibrate` kept costs, it is those. Else a native pair on a CPU is measured for
    a tenth of a second, after it ran once, so that no step of a text compiles anything.

    Args:
        pair: the models.
        loaded: what the target was made of.
        drafter: the name by which the drafter was loaded.
    """
    kept = read_costs(CostKey.of(loaded, drafter))
    if loaded.device != "cpu" or loaded.engine != "native":
        return kept
    warm_up(pair)
    if kept is not None or drafter == NO_DRAFTER:
        return kept
    # A model that fails here fails in the first real step, too, which tells why.
    with suppress(TreesnakeError):
        return measure_costs(
            pair,
            Prompt(WARM_UP_TOKENS),
            lengths=(len(WARM_UP_TOKENS),),
            nodes=FIRST_NODES,
            widths=FIRST_WIDTHS,
            num_rounds=FIRST_ROUNDS,
            budget_s=FIRST_BUDGET_S,
        )
    return None


def measure_costs(
    pair: PairModel,
    prompt: Prompt,
    *,
    lengths: Sequence[int] = LENGTHS,
    nodes: Sequence[int] = NODES,
    widths: Sequence[int] = WIDTHS,
    num_rounds: int = NUM_ROUNDS,
    budget_s: float = inf,
) -> CostTable:
    """Measures a pair on this machine, as it is set and with what else it does.

    Args:
        pair: the models.
        prompt: some text, repeated to the lengths; what is in it does not matter.
        lengths: of the context, in tokens; those that the target has no room for are left out.
        nodes: sizes of trees that are scored, 1 first: the first step of a text drafts nothing.
        widths: nodes of a level that are expanded at once.
        num_rounds: the median of so many is taken, after one that is not counted.
        budget_s: after so many seconds only the first number of nodes and the first width are
            measured, once each, where that was not done.
    """
    deadline = perf_counter() + budget_s
    score_s: dict[int, dict[int, float]] = {}
    draft_s: dict[int, dict[int, float]] = {}
    for length in lengths:
        target, drafter = pair.new_sessions()
        room = target.context_length
        if score_s and room is not None and room < length + max(nodes) + num_rounds + 2:
            continue
        text = Prompt((prompt.token_ids * (length // len(prompt) + 1))[:length])
        scoring = ((count, _scoring_s(target, text, count)) for count in nodes)
        score_s[length] = _medians(scoring, num_rounds, deadline)
        drafter.prefill(text)
        drafting = ((width, _drafting_s(drafter, text.token_ids[-1], width)) for width in widths)
        draft_s[length] = _medians(drafting, num_rounds, deadline)
    return CostTable(score_s, draft_s)


def _medians(
    measured: Iterator[tuple[int, Iterator[float]]], num_rounds: int, deadline: float
) -> dict[int, float]:
    """Returns the median of some rounds for every count, as far as there is time.

    Args:
        measured: for every count an iterator that measures whenever it is asked.
        num_rounds: that count, after a first one that does not.
        deadline: on the clock of `perf_counter`.
    """
    costs: dict[int, float] = {}
    for count, rounds in measured:
        if costs and perf_counter() >= deadline:
            break
        taken: list[float] = []
        for seconds in rounds:
            taken.append(seconds)
            if len(taken) > num_rounds or perf_counter() >= deadline:
                break
        costs[count] = max(statistics.median(taken[1:] or taken), LEAST_S)
    return costs


def _scoring_s(target: Target, prompt: Prompt, num_nodes: int) -> Iterator[float]:
    """Runs the loop with trees of a size, whose tokens are guesses at nothing."""
    steps = continue_text(
        target,
        _Guesses(),
        prompt,
        SamplingParams(),
        search=StaticSearch(FixedTree((0,) * (num_nodes - 1))),
        max_new_tokens=1000,
    ).steps
    for step in steps:
        yield step.seconds.work_s - step.seconds.draft_s


def _drafting_s(drafter: Drafter, anchor: int, width: int) -> Iterator[float]:
    """Times a level of a width, by drafts of two depths."""
    rng = TorchRng(0)

    def draft_s(shape: Shape) -> float:
        started = perf_counter()
        drafter.draft(anchor, shape, SamplingParams(), rng)
        return perf_counter() - started

    draft_s(_shapes(width, 1))  # before the first one the drafter reads the prompt
    while True:
        shallow_s = draft_s(_shapes(width, 1))
        yield (draft_s(_shapes(width, 1 + LEVELS)) - shallow_s) / LEVELS


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
