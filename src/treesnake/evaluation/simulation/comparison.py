"""Searches against each other and against the best fixed shape in hindsight, over many prompts."""

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from treesnake.evaluation.bootstrap import Estimate, bootstrap_ratio
from treesnake.evaluation.simulation.replay import Machine, Replayed, replay
from treesnake.evaluation.simulation.trace import Trace
from treesnake.protocols import SharedSearch
from treesnake.search.costs import CostTable

NewSearch = Callable[[], SharedSearch]

Results = Mapping[str, Sequence[Replayed]]
"""For each search, what it made of each trace, in the order of the traces."""


def run(
    traces: Sequence[Trace],
    searches: Mapping[str, NewSearch],
    costs: CostTable,
    *,
    noise: float = 0.05,
    seed: int = 0,
) -> dict[str, list[Replayed]]:
    """Runs each search over all traces, one after the other as a server would, in random order.

    What a search learned on a text it takes along to the next. All get the same order.
    """
    order = list(range(len(traces)))
    random.Random(seed).shuffle(order)
    results: dict[str, list[Replayed]] = {}
    for name, new_search in searches.items():
        search, machine = new_search(), Machine(costs, noise=noise, seed=seed)
        replayed = {index: replay(traces[index], search.new_session(), machine) for index in order}
        results[name] = [replayed[index] for index in range(len(traces))]
    return results


def rate(replayed: Sequence[Replayed]) -> float:
    """Returns the tokens per second of some texts together."""
    return sum(each.tokens for each in replayed) / sum(each.seconds for each in replayed)


def best_fixed(results: Results, fixed: Sequence[str]) -> str:
    """Returns which of the fixed shapes was fastest over all: the best in hindsight."""
    return max(fixed, key=lambda name: rate(results[name]))


def relative_rate(replayed: Sequence[Replayed], reference: Sequence[Replayed]) -> Estimate:
    """Returns how many times as fast one is as another, with an interval over the prompts."""
    ratio = bootstrap_ratio(*_sums(replayed), *_sums(reference))
    assert ratio is not None, "every text has tokens and seconds"
    return ratio


def _sums(
    replayed: Sequence[Replayed],
) -> tuple[Float[np.ndarray, " prompts"], Float[np.ndarray, " prompts"]]:
    """Returns the tokens and the seconds of each text."""
    tokens, seconds = zip(*((float(each.tokens), each.seconds) for each in replayed), strict=True)
    return np.array(tokens), np.array(seconds)


def by_category(traces: Sequence[Trace], results: Results) -> dict[str, dict[str, list[Replayed]]]:
    """Returns the results of each category apart."""
    return {
        category: {
            name: [
                each
                for trace, each in zip(traces, replayed, strict=True)
                if trace.category == category
            ]
            for name, replayed in results.items()
        }
        for category in sorted({trace.category for trace in traces})
    }
