"""The search that does not: one shape for all steps."""

from dataclasses import dataclass

from treesnake.outcome import Step
from treesnake.shape import Shape


@dataclass(frozen=True)
class StaticSearch:
    """Always the same shape."""

    shape: Shape

    def choose(self, context_length: int) -> Shape:
        """Returns the shape."""
        return self.shape

    def observe(self, step: Step) -> None:
        """Learns nothing."""
