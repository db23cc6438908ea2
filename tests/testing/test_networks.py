"""The check of networks lets right ones pass and finds planted faults."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from treesnake.models.tree_network import Part, TreeNetwork, TreeState
from treesnake.prompt import Prompt
from treesnake.states.snapshots import Snapshot
from treesnake.testing import RecurrentModel, TinyNetwork, check_network
from treesnake.testing.tiny import TinySnapshot, TinyState

MODEL = RecurrentModel(7)


class NodesBelowTheText(TinyState):
    """Runs every node from the text, whatever its parent is."""

    def extend(self, token_ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        super().extend(token_ids, parents)
        del self._nodes[-len(token_ids) :]
        rows = []
        for token in token_ids:
            after, logits = MODEL.step(self._committed, token)
            self._nodes.append(after)
            rows.append(logits)
        return torch.stack(rows)


class CommitsOneToken(TinyState):
    """Takes the last token of a path alone."""

    def commit(self, path: Sequence[int]) -> None:
        super().commit(path)
        if len(path) > 1:
            del self._held.key[-len(path) : -1]


class KeepsItsTree(TinyState):
    """Goes on with the nodes of before behind a new prompt."""

    def prefill(self, prompt: Prompt) -> None:
        nodes, tokens, parents = self._nodes, self._held.tokens, self._held.parents
        super().prefill(prompt)
        self._nodes, self._held.tokens, self._held.parents = nodes, tokens, parents


class GoesOnFromAnything(TinyState):
    """Runs what a prompt has more than the text, also where the text is another one."""

    def prefill(self, prompt: Prompt) -> None:
        self._held.key = list(prompt.key[: min(self.length, len(prompt) - 1)])
        super().prefill(prompt)


class SnapshotsWithoutState(TinyState):
    """Keeps of a text its key and nothing that was computed."""

    def restore(self, snapshot: Snapshot) -> None:
        assert isinstance(snapshot, TinySnapshot)
        super().restore(TinySnapshot(MODEL, snapshot.key, (), MODEL.initial()))


class ForgetsTheKey(TinyState):
    """Restores what was computed, and not which text it is."""

    def restore(self, snapshot: Snapshot) -> None:
        super().restore(snapshot)
        self._held.cut(0)


class TakesAnyPath(TinyState):
    """Commits what is no path."""

    def commit(self, path: Sequence[int]) -> None:
        self._held.check_path(())
        if path:
            self._committed = self._nodes[path[-1]]
        self._held.commit(path)
        self._nodes = []


class MixesParts(TinyNetwork):
    """Gives the parts of a pass each other's logits."""

    def extend_all(self, parts: Sequence[Part]) -> list[Tensor]:
        logits = super().extend_all(parts)
        sizes = {len(rows) for rows in logits}
        return logits[::-1] if len(sizes) == 1 else logits


class TakesAStateTwice(TinyNetwork):
    """Does not look whether two parts are one text."""

    def extend_all(self, parts: Sequence[Part]) -> list[Tensor]:
        return [part.state.extend(part.token_ids, part.parents) for part in parts]


def over(kind: type[TinyState]) -> TreeNetwork:
    class Network(TinyNetwork):
        def new_state(self) -> TreeState:
            return kind(self.model)

    return Network(MODEL)


FAULTS = {
    NodesBelowTheText: "a node differs from its path",
    CommitsOneToken: "length is not that of the committed text",
    KeepsItsTree: "",
    GoesOnFromAnything: "prefill of a state in use",
    SnapshotsWithoutState: "a restored text differs",
    ForgetsTheKey: "a restored text has another length",
    TakesAnyPath: "was not refused",
}


def test_a_right_network_passes() -> None:
    check_network(TinyNetwork(MODEL), num_trials=10, tolerance=0)


@pytest.mark.parametrize(("kind", "promise"), FAULTS.items(), ids=str)
def test_a_faulty_state_is_found_out(kind: type[TinyState], promise: str) -> None:
    with pytest.raises((AssertionError, IndexError), match=promise):
        check_network(over(kind), num_trials=10)


@pytest.mark.parametrize(
    ("kind", "promise"),
    [(MixesParts, "a part of a shared pass differs"), (TakesAStateTwice, "was not refused")],
)
def test_a_faulty_shared_pass_is_found_out(kind: type[TinyNetwork], promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_network(kind(MODEL), num_trials=10)
