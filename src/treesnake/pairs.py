"""A target and its drafter, as one thing to load, to serve and to measure."""

from dataclasses import dataclass

from treesnake.errors import InvalidInputError
from treesnake.protocols import Drafter, DrafterModel, Target, TargetModel


@dataclass(frozen=True)
class Pair:
    """Two models that know nothing of each other.

    Attributes:
        target: the model whose output is wanted.
        drafter: the model that guesses.

    Raises:
        InvalidInputError: if one of them makes no sessions, as a bare network does not.
    """

    target: TargetModel
    drafter: DrafterModel

    def __post_init__(self) -> None:
        for model in (self.target, self.drafter):
            if not isinstance(model, TargetModel | DrafterModel):
                raise InvalidInputError(
                    f"{type(model).__name__} has no new_session; a network plays a role inside of "
                    "NetworkTargetModel or NetworkDrafterModel"
                )

    def new_sessions(self) -> tuple[Target, Drafter]:
        """Returns a session of each."""
        return self.target.new_session(), self.drafter.new_session()
