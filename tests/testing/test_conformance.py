"""The public checks let right implementations pass and find planted faults."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from jaxtyping import Float
from torch import Tensor

from treesnake.draft import Draft, Scored
from treesnake.drafters.network import NetworkDrafter, NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter, DrafterModel, Target, TargetModel
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import Shape
from treesnake.states.held_text import HeldText
from treesnake.targets.network import NetworkTarget, NetworkTargetModel
from treesnake.testing import (
    AttentionModel,
    RecurrentModel,
    TableModel,
    TinyModel,
    TinyNetwork,
    check_drafter,
    check_target,
)
from treesnake.testing.tiny import TinyState
from treesnake.tree import TokenTree

VOCAB_SIZE = 7
TOYS = [
    TableModel(VOCAB_SIZE, order=2),
    RecurrentModel(VOCAB_SIZE),
    AttentionModel(VOCAB_SIZE),
]


@pytest.mark.parametrize("model", TOYS, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("seed", range(2))
def test_toy_targets_keep_every_promise(model: TinyModel, seed: int) -> None:
    check_target(NetworkTargetModel(TinyNetwork(model)), seed=seed)


@pytest.mark.parametrize("model", TOYS, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("seed", range(2))
def test_toy_drafters_keep_every_promise(model: TinyModel, seed: int) -> None:
    check_drafter(NetworkDrafterModel(TinyNetwork(model)), VOCAB_SIZE, seed=seed)


def test_prompt_lookup_keeps_every_promise() -> None:
    check_drafter(NgramDrafterModel(longest=2, shortest=1), VOCAB_SIZE)


def test_a_toy_target_that_drafts_for_itself_is_consistent() -> None:
    """One set of weights in both roles: the sessions must not share anything else."""
    model = RecurrentModel(VOCAB_SIZE)
    check_target(NetworkTargetModel(TinyNetwork(model)))
    check_drafter(NetworkDrafterModel(TinyNetwork(model)), VOCAB_SIZE)
    check_target(NetworkTargetModel(TinyNetwork(model)))


# Targets with a fault, each in one method.


class ToyTarget(NetworkTarget):
    """A target over a toy, whose state faults may reach into."""

    def __init__(self, state: TinyState) -> None:
        super().__init__(TinyNetwork(RecurrentModel(VOCAB_SIZE)), state)
        self.state = state


class KeepsTheScoredTree(ToyTarget):
    """Does not roll its state back after scoring."""

    def score(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
        logits = super().score(tree)
        self.state._committed = self.state._nodes[-1]
        return logits


class ScoresTreesAsTexts(ToyTarget):
    """Lets every node see all nodes before it, siblings included."""

    def score(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
        return super().score(TokenTree.chain(tree.tokens))


class KeepsTheFirstMask(ToyTarget):
    """Computes the ancestor mask for each size of tree only once."""

    def score(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
        first: dict[int, tuple[int, ...]] = self.__dict__.setdefault("first", {})
        return super().score(TokenTree.of(tree.tokens, first.setdefault(len(tree), tree.parents)))


class CommitsTheFirstNodes(ToyTarget):
    """Takes as many nodes as the path has, but from the beginning of the tree."""

    def commit(self, path: Sequence[int]) -> None:
        tokens = self.state._held.tokens[: len(path)]
        self.state.commit(())
        self.state.extend(tokens, range(-1, len(path) - 1))
        super().commit(range(len(path)))


class ForgetsTheAnchor(ToyTarget):
    """Commits the accepted tokens without the anchor before them."""

    def commit(self, path: Sequence[int]) -> None:
        tokens = [self.state._held.tokens[node] for node in path[1:]]
        self.state.commit(())
        if tokens:
            self.state.extend(tokens, range(-1, len(tokens) - 1))
        super().commit(range(len(tokens)))


class CommitsTheAnchorOnly(ToyTarget):
    """Lets the loop feed it the accepted tokens again, which the loop does not."""

    def commit(self, path: Sequence[int]) -> None:
        super().commit(path[:1])


class NeverForgets(ToyTarget):
    """Runs a new prompt after whatever it held."""

    def prefill(self, prompt: Prompt) -> None:
        self.state._held = HeldText()
        super().prefill(prompt)


class HoldsTooMuch(ToyTarget):
    """Keeps its state if the new prompt is the beginning of what it holds."""

    def prefill(self, prompt: Prompt) -> None:
        wanted = list(prompt.token_ids[:-1])
        if self.state._held.key[: len(wanted)] != wanted:
            super().prefill(prompt)


class CommitsUnnoticed(ToyTarget):
    """Moves its state on without noting which tokens it holds."""

    def commit(self, path: Sequence[int]) -> None:
        key = list(self.state._held.key)
        super().commit(path)
        self.state._held.key = key


class IgnoresWhatWasCommitted(ToyTarget):
    """Compares a new prompt with the last prompt, and not with what it holds by now."""

    def prefill(self, prompt: Prompt) -> None:
        last: list[int] = self.__dict__.setdefault("last", [])
        if last and list(prompt.token_ids[: len(last)]) == last:
            self.state._held.key = list(last)
        super().prefill(prompt)
        self.__dict__["last"] = list(prompt.token_ids[:-1])


@dataclass
class SessionsOf:
    """Makes sessions, right ones or not."""

    make: Callable[[], Target]

    def new_session(self) -> Target:
        return self.make()


@dataclass
class DraftersOf:
    """The same for drafters."""

    make: Callable[[], Drafter]

    def new_session(self) -> Drafter:
        return self.make()


def new_state() -> TinyState:
    return TinyNetwork(RecurrentModel(VOCAB_SIZE)).new_state()


@pytest.mark.parametrize(
    "faulty",
    [
        KeepsTheScoredTree,
        ScoresTreesAsTexts,
        KeepsTheFirstMask,
        CommitsTheFirstNodes,
        ForgetsTheAnchor,
        CommitsTheAnchorOnly,
        NeverForgets,
        HoldsTooMuch,
        CommitsUnnoticed,
        IgnoresWhatWasCommitted,
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_faulty_targets_are_found_out(faulty: type[ToyTarget], seed: int) -> None:
    with pytest.raises(AssertionError, match="differ"):
        check_target(SessionsOf(lambda: faulty(new_state())), seed=seed)


def test_a_mask_that_sessions_share_is_found_out() -> None:
    """As a graph that was captured for the first tree of each size would be."""
    first: dict[int, tuple[int, ...]] = {}

    class SharesTheFirstMask(ToyTarget):
        def score(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
            parents = first.setdefault(len(tree), tree.parents)
            return super().score(TokenTree.of(tree.tokens, parents))

    with pytest.raises(AssertionError):
        check_target(SessionsOf(lambda: SharesTheFirstMask(new_state())))


def test_sessions_that_share_their_state_are_found_out() -> None:
    shared = new_state()
    with pytest.raises(AssertionError):
        check_target(SessionsOf(lambda: ToyTarget(shared)))


def test_logits_for_the_anchor_alone_are_found_out() -> None:
    class ScoresTheAnchor(ToyTarget):
        def score(self, tree: TokenTree) -> Tensor:
            return super().score(tree)[:1]

    with pytest.raises(AssertionError, match="one row of logits per node"):
        check_target(SessionsOf(lambda: ScoresTheAnchor(new_state())))


# Drafters with a fault.


class IgnoresCommits(NetworkDrafter):
    """Drafts on, but never learns what became of it."""

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        self._text.forget_tree()


class LosesUnseenTokens(NetworkDrafter):
    """Forgets accepted leaves, which its model has not seen yet."""

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        super().commit(token_ids)
        self._text._behind = []


class CommitsAllItDrafted(NetworkDrafter):
    """Takes everything that its model has seen for accepted."""

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        if self._grown is None:
            return super().commit(token_ids, scored)
        tree = self._grown.draft.tree
        return super().commit(tree.path_tokens(len(tree) - 1))


class KeepsUnseenTokens(NetworkDrafter):
    """Is behind by the tokens of another text."""

    def prefill(self, prompt: Prompt) -> None:
        behind = self._text._behind
        super().prefill(prompt)
        self._text._behind = behind


class DraftsOnItsDraft(NetworkDrafter):
    """Leaves the nodes of an abandoned draft in its state."""

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        if self._grown is not None and any(node >= 0 for node in self._grown.grown_nodes):
            self._text._state.commit([*range(len(self._text._behind) + 1)])
        return super().draft(anchor, shape, params, rng)


class DraftsTooDeep(NetworkDrafter):
    """Adds a level that nobody asked for."""

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        tree = super().draft(anchor, shape, params, rng).tree
        return Draft.chosen(TokenTree.of((*tree.tokens, 0), (*tree.parents, len(tree) - 1)))


class DraftsTwice(NetworkDrafter):
    """Has the same child twice."""

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        tree = super().draft(anchor, shape, params, rng).tree
        if len(tree) < 2:
            return Draft.chosen(tree)
        return Draft.chosen(TokenTree.of((*tree.tokens, tree.tokens[1]), (*tree.parents, 0)))


class GivesWeights(NetworkDrafter):
    """Gives draft probabilities that were not normalized."""

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        draft = super().draft(anchor, shape, params, rng)
        if draft.draft_probs is None:
            return draft
        return Draft(draft.tree, 2 * draft.draft_probs, draft.sampled_mask)


@pytest.mark.parametrize(
    ("faulty", "promise"),
    [
        (IgnoresCommits, "new session on the same text"),
        (LosesUnseenTokens, "new session on the same text"),
        (CommitsAllItDrafted, "new session on the same text"),
        (KeepsUnseenTokens, "new session with the same prompt"),
        (DraftsOnItsDraft, "the one before it on the same text"),
        (DraftsTooDeep, "deeper than its shape"),
        (DraftsTwice, "same child twice"),
        (GivesWeights, "does not sum to 1"),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_faulty_drafters_are_found_out(
    faulty: type[NetworkDrafter], promise: str, seed: int
) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_drafter(DraftersOf(lambda: faulty(new_state())), VOCAB_SIZE, seed=seed)


def test_drafters_that_share_their_state_are_found_out() -> None:
    shared = new_state()
    with pytest.raises((AssertionError, InvalidInputError)):
        check_drafter(DraftersOf(lambda: NetworkDrafter(shared)), VOCAB_SIZE)


def test_sessions_play_their_roles() -> None:
    model = RecurrentModel(VOCAB_SIZE)
    target, drafter = (
        NetworkTargetModel(TinyNetwork(model)),
        NetworkDrafterModel(TinyNetwork(model)),
    )
    assert isinstance(target, TargetModel)
    assert isinstance(target.new_session(), Target)
    assert isinstance(drafter, DrafterModel)
    assert isinstance(drafter.new_session(), Drafter)
