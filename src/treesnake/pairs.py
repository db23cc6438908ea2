"""A target and its drafter, as one thing to load, to serve and to measure."""

from dataclasses import dataclass

from treesnake.protocols import Drafter, DrafterModel, Target, TargetModel


@dataclass(frozen=True)
class Pair:
    """Two models that know nothing of each other.

    Attributes:
        target: the model whose output is wanted.
        drafter: the model that guesses.
    """

    target: TargetModel
    drafter: DrafterModel

    def new_sessions(self) -> tuple[Target, Drafter]:
        """Returns a session of each."""
        return self.target.new_session(), self.drafter.new_session()
