"""Mamba and Mamba-2 as drafters (Choi et al. 2025): memory and time do not grow with the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from treesnake.drafters.model_drafter import ModelDrafter
from treesnake.drafters.vocabulary import VocabularyMap
from treesnake.models.state_space import StateSpaceConfig
from treesnake.prompt import missing_tokens
from treesnake.states.branching import PathSums, StateCopies
from treesnake.states.ssm import SsmState

BranchingKind = type[StateCopies] | type[PathSums]


@runtime_checkable
class StateSpaceModel(Protocol):
    """What is used of a Mamba or Mamba-2: a `StateSpaceNetwork`, or one packed for a CPU."""

    @property
    def config(self) -> StateSpaceConfig:
        """The network's sizes."""
        ...

    def new_state(self, branching: BranchingKind | None = None) -> SsmState:
        """Returns the state of an empty text."""
        ...

    def prefill(self, token_ids: Sequence[int], state: SsmState) -> None:
        """Runs a text part by part and commits it; a tree that was there is dropped."""
        ...

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int], state: SsmState
    ) -> Float[Tensor, "new vocab"]:
        """Appends nodes to the tree and returns the logits after each of them."""
        ...


@dataclass(frozen=True, eq=False)
class MambaDrafterModel:
    """Makes drafter sessions over a Mamba or Mamba-2.

    Attributes:
        network: the weights.
        vocabulary: how its tokens relate to the target's; None if they are the same.
        branching: how its state branches; by default what is fastest for the architecture.
    """

    network: StateSpaceModel
    vocabulary: VocabularyMap | None = None
    branching: BranchingKind | None = None

    def new_session(self) -> ModelDrafter:
        """Returns a session with an empty state."""
        return ModelDrafter(MambaState(self.network, self.branching), self.vocabulary)

    @property
    def state_bytes(self) -> int:
        """The bytes of a session's state between drafts, however long the text is."""
        return self.network.new_state(self.branching).shape.committed_bytes

    @property
    def bytes_per_node(self) -> int:
        """The bytes that each node of a tree adds while it is drafted."""
        state = self.network.new_state(self.branching)
        return state.shape.conv_bytes + state.branching.bytes_per_node(state.shape)


class MambaState:
    """A `TreeModel` over a Mamba or Mamba-2.

    A recurrent state cannot be rolled back: a text that does not begin with what the state holds is
    run from its start.
    """

    def __init__(self, network: StateSpaceModel, branching: BranchingKind | None = None) -> None:
        self._network = network
        self._state = network.new_state(branching)
        self._held: list[int] = []
        self._tokens: list[int] = []

    @property
    def num_bytes(self) -> int:
        """The bytes that are held now, room for the largest tree so far included."""
        return self._state.num_bytes

    def prefill(self, token_ids: Sequence[int]) -> None:
        """Makes the state hold exactly these tokens; nothing is run again if it held the first."""
        missing = missing_tokens(self._held, token_ids)
        if missing is None:
            self._forget()
            missing = list(token_ids)
        try:
            self._network.prefill(missing, self._state)
        except BaseException:
            self._forget()  # nobody knows how much of the text it holds
            raise
        self._held += missing
        self._tokens = []

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Appends nodes below earlier ones, or below the text (-1); returns logits after each."""
        logits = self._network.extend(token_ids, parents, self._state)
        self._tokens += token_ids
        return logits

    def commit(self, path: Sequence[int]) -> None:
        """Moves the state to the end of a path, without running anything, and drops the tree."""
        self._state.commit(path)
        self._held += [self._tokens[node] for node in path]
        self._tokens = []

    def _forget(self) -> None:
        self._state.reset()
        self._held = []
