"""Every way that chance can turn, one after the other: exact distributions of random procedures."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.sampling import Distributions, Rng

Outcome = TypeVar("Outcome", bound=Hashable)


def enumerate_outcomes(
    experiment: Callable[[Rng], Outcome],
) -> dict[Outcome, float]:
    """Returns the exact probability of each result of a procedure that takes chance from `rng`.

    The procedure is run once for each sequence of random decisions that it can meet, so it must
    depend on nothing else that changes. The cost is the number of such sequences: keep vocabularies
    and trees tiny.
    """
    outcomes: dict[Outcome, float] = {}
    scripts: list[tuple[int, ...]] = [()]
    while scripts:
        rng = _ScriptedRng(scripts.pop())
        outcome = experiment(rng)
        outcomes[outcome] = outcomes.get(outcome, 0.0) + rng.probability
        scripts += rng.untaken
    return outcomes


class _ScriptedRng:
    """Takes decisions from a script, then the first possible ones, and notes the others."""

    def __init__(self, script: tuple[int, ...]) -> None:
        self._script = script
        self._taken: tuple[int, ...] = ()
        self.probability = 1.0
        self.untaken: list[tuple[int, ...]] = []

    def coin(self, probability: float) -> bool:
        return self._decide([max(0.0, 1 - probability), min(1.0, probability)]) == 1

    def draw(self, probs: Float[Tensor, " vocab"]) -> int:
        weights = probs.double()
        return self._decide((weights / weights.sum()).tolist())

    def draw_distinct(self, probs: Float[Tensor, " vocab"], num_tokens: int) -> list[int]:
        remaining = probs.clone()
        tokens: list[int] = []
        for _ in range(min(num_tokens, int((probs > 0).sum()))):
            tokens.append(self.draw(remaining))
            remaining[tokens[-1]] = 0
        return tokens

    def waits(
        self, depth: int, token_ids: Int[np.ndarray, " tokens"]
    ) -> Float[np.ndarray, " tokens"]:
        return np.ones(len(token_ids))  # no noise: what it does is not one of finitely many ways

    def first_come(self, target: Distributions, depths: Sequence[int]) -> Callable[[int], int]:
        return lambda node: self.draw(target.probs[node])

    def advance(self, num_tokens: int) -> None:
        """Needs nothing: every draw is a decision of its own."""

    def _decide(self, probabilities: list[float]) -> int:
        options = [option for option, probability in enumerate(probabilities) if probability > 0]
        index = len(self._taken)
        if index < len(self._script):
            decision = self._script[index]
        else:
            decision = options[0]
            self.untaken += [(*self._taken, other) for other in options[1:]]
        self._taken += (decision,)
        self.probability *= probabilities[decision]
        return decision
