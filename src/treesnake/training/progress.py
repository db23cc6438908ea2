"""How far a run is: all of a checkpoint that is neither weights nor an optimizer's state."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from treesnake.errors import TrainingError
from treesnake.training.held_out import HeldOutScore

POSITION_FILE = "position.json"


@dataclass(frozen=True)
class Evaluation:
    """How far training was, and how well the drafter guessed then.

    Attributes:
        update: how many updates there had been.
        num_tokens: tokens that had been run, prompts included.
        seconds_s: that training had taken.
        training_loss: its mean since the evaluation before.
        judgement: on held-out text.
    """

    update: int
    num_tokens: int
    seconds_s: float
    training_loss: float
    judgement: HeldOutScore


@dataclass
class TrainingProgress:
    """How far a run is; what the weights and the optimizers do not say.

    Attributes:
        update: how many updates are done.
        num_tokens: that were run.
        seconds_s: that they took.
        recent_losses: of the updates since the last evaluation.
        evaluations: all so far.
    """

    update: int = 0
    num_tokens: int = 0
    seconds_s: float = 0.0
    recent_losses: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the most tokens a step; of equal ones the earliest."""
        return max(self.evaluations, key=_tokens_per_step, default=None)

    def write(self, folder: Path) -> None:
        """Writes it into a folder."""
        (folder / POSITION_FILE).write_text(json.dumps(asdict(self)), "utf-8")

    @classmethod
    def read(cls, folder: Path) -> "TrainingProgress":
        """Reads what `write` wrote.

        Raises:
            TrainingError: if it is something else.
        """
        path = folder / POSITION_FILE
        try:
            stored = json.loads(path.read_text("utf-8"))
            evaluations = [
                Evaluation(**(each | {"judgement": HeldOutScore.of_json(each["judgement"])}))
                for each in stored.pop("evaluations")
            ]
            return cls(**stored, evaluations=evaluations)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise TrainingError(f"{path} is of another version: {error!r}") from error


def _tokens_per_step(evaluation: Evaluation) -> float:
    return evaluation.judgement.tokens_per_step
