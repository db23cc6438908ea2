"""Steps of an output layer towards what a target says, over hidden states that stay as they are.

Behind the last norm a network is linear, so this is softmax regression. The gradient of the log
loss for an output's row is the sum of (probability - wanted) * hidden state. Hidden states point
much the same way, and plain steps would move all rows along that way and along little else. So each
step is multiplied by the inverse of their second moment: Newton's step but for the softmax's own
curvature, as in K-FAC (Martens and Grosse 2015).

The softmax is over those outputs alone that were wanted somewhere. The others keep their rows, and
since gradients add up to 0 over outputs, wanted ones do not rise above them on average.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.drafters.said_texts import ReadText
from treesnake.threads import on_one_thread

BATCH = 256
"""Places of a step."""


@dataclass(frozen=True, eq=False)
class Places:
    """Places of texts: what the output layer sees there, and what is wanted of it.

    Attributes:
        hidden: divided by the temperature of the text.
        wanted: outputs; a negative one is none.
        shares: how much each of them is wanted.
    """

    hidden: Float[Tensor, "places hidden"]
    wanted: Int[Tensor, "places wanted"]
    shares: Float[Tensor, "places wanted"]

    def __len__(self) -> int:
        return len(self.hidden)

    @classmethod
    def of(cls, text: ReadText, hidden: Iterable[Float[Tensor, "_ hidden"]]) -> "Places":
        """Returns the places of a text with the hidden states of all its tokens, in parts."""
        return cls(
            torch.cat([*hidden])[torch.from_numpy(text.places)] / text.temperature,
            torch.from_numpy(text.wanted),
            torch.from_numpy(text.shares),
        )

    @classmethod
    def joined(cls, parts: Sequence["Places"]) -> "Places":
        """Returns the places of several texts, one after another."""
        return cls(
            torch.cat([part.hidden for part in parts]),
            torch.cat([part.wanted for part in parts]),
            torch.cat([part.shares for part in parts]),
        )

    def __getitem__(self, chosen: slice) -> "Places":
        """Returns some of them."""
        return Places(self.hidden[chosen], self.wanted[chosen], self.shares[chosen])

    def batches(self) -> Iterator["Places"]:
        """Yields the places of one step after those of another."""
        for begin in range(0, len(self), BATCH):
            yield self[begin : begin + BATCH]

    @property
    def outputs(self) -> Int[Tensor, " outputs"]:
        """The outputs that are wanted somewhere, each once and in order."""
        return self.wanted[self.shares > 0].unique()

    def wanted_probs(self, outputs: Int[Tensor, " outputs"]) -> Float[Tensor, "places outputs"]:
        """Returns a distribution for each place over these outputs, which hold all wanted ones."""
        columns = torch.searchsorted(outputs, self.wanted.clamp(min=int(outputs[0])))
        probs = torch.zeros(len(self), len(outputs))
        probs.scatter_add_(1, columns, self.shares)
        return probs / probs.sum(1, keepdim=True)


class SecondMoment:
    """The second moment of hidden states, of the latest more than of the oldest.

    Args:
        size: the width of a hidden state.
        damping: what is added to it before it is inverted, relative to the mean over its diagonal.
        discount: what a batch counts after each later one.
    """

    def __init__(self, size: int, *, damping: float, discount: float) -> None:
        self._sums = torch.zeros(size, size)
        self._weight = 0.0
        self._damping = damping
        self._discount = discount

    @on_one_thread
    def observe(self, hidden: Float[Tensor, "places hidden"]) -> None:
        """Adds a batch."""
        self._sums.mul_(self._discount).addmm_(hidden.T, hidden)
        self._weight = self._discount * self._weight + len(hidden)

    @on_one_thread
    def inverse(self) -> Float[Tensor, "hidden hidden"]:
        """Returns the inverse, damped."""
        moment = self._sums / self._weight
        added = self._damping * moment.diagonal().mean()
        return torch.linalg.inv(moment + added * torch.eye(len(moment)))


@on_one_thread
def log_losses(
    rows: Float[Tensor, "outputs hidden"], places: Places, outputs: Int[Tensor, " outputs"]
) -> Float[Tensor, " places"]:
    """Returns for each place what is wanted times minus its log probability, in nats.

    Args:
        rows: of the output layer, for each of the outputs.
        places: what is wanted.
        outputs: in order; all that are wanted are among them.
    """
    log_probs = F.log_softmax(places.hidden @ rows.T, dim=1)
    return -(places.wanted_probs(outputs) * log_probs).sum(1)


@on_one_thread
def step_along(
    rows: Float[Tensor, "outputs hidden"],
    batch: Places,
    outputs: Int[Tensor, " outputs"],
    inverse: Float[Tensor, "hidden hidden"],
    rate: float,
) -> None:
    """Changes rows of an output layer by one step.

    Args:
        rows: for each of the outputs.
        batch: what is wanted.
        outputs: in order; all that are wanted are among them.
        inverse: of the second moment of the hidden states.
        rate: by how much; 1 is about Newton's step.
    """
    errors = F.softmax(batch.hidden @ rows.T, dim=1) - batch.wanted_probs(outputs)
    rows -= (rate / len(batch)) * (errors.T @ batch.hidden @ inverse)
