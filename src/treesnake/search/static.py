"""The search that does not: one shape for all steps."""

from dataclasses import dataclass

from treesnake.errors import InvalidInputError
from treesnake.outcome import Step
from treesnake.shape import Shape


@dataclass(frozen=True)
class StaticSearch:
    """Always the same shape. There is nothing to learn, so it is its own session.

    Raises:
        InvalidInputError: if it is no shape; `parse_shape` makes one of its name.
    """

    shape: Shape

    def __post_init__(self) -> None:
        if not isinstance(self.shape, Shape):
            raise InvalidInputError(
                f"a static search has a shape such as chain(3), got {self.shape!r}; "
                "treesnake.shape.parse_shape reads one"
            )

    def new_session(self) -> "StaticSearch":
        """Returns itself."""
        return self

    def choose(self, context_length: int) -> Shape:
        """Returns the shape."""
        return self.shape

    def observe(self, step: Step) -> None:
        """Learns nothing."""
