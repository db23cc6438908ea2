"""The search that does not: one shape for all steps."""

from dataclasses import dataclass

from treesnake.outcome import Step
from treesnake.shape import Shape, chain


@dataclass(frozen=True)
class StaticSearch:
    """Always the same shape."""

    shape: Shape

    def choose(self, context_length: int) -> Shape:
        """Returns the shape."""
        return self.shape

    def observe(self, step: Step) -> None:
        """Learns nothing."""


SEED_KEEPING = StaticSearch(chain(4))
"""For samples that a seed must give again: which one it gives depends on the shapes, and those of
searches that read the clock differ from run to run."""
