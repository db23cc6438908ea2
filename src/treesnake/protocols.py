"""The four roles. The loop in `generate.py` knows these and nothing else.

A `Target` or a `Drafter` is a *session*: the state of one sequence over weights that many sessions
share. Methods that change a session are called prefill and commit; scoring and drafting leave what
is committed as it was.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from treesnake.draft import Draft, Scored
from treesnake.outcome import Acceptance, Step
from treesnake.prompt import Prompt
from treesnake.sampling import Distributions, Rng, SamplingParams
from treesnake.shape import Shape
from treesnake.tree import TokenTree


@runtime_checkable
class Target(Protocol):
    """The model whose output is wanted, with the state of one sequence."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens that `score` gives logits for."""
        ...

    @property
    def context_length(self) -> int | None:
        """The number of tokens that fit, or None if there is no limit."""
        ...

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last, which is the first anchor.

        What the state holds already is kept if the prompt begins with it, and dropped if not.
        """
        ...

    def score(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
        """Returns the logits after each node, given the state and the node's path.

        The anchor sits right after the state. Nothing is committed; scoring again forgets the tree
        that was scored before.
        """
        ...

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path of the scored tree, the anchor's included, into the state."""
        ...


@runtime_checkable
class Drafter(Protocol):
    """A cheap guess at what the target will say, with the state of one sequence."""

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last, as `Target.prefill`."""
        ...

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Returns a tree over `anchor`, no deeper than the shape, possibly smaller.

        The distributions of sampled nodes are what `params` make of the drafter's logits.
        """
        ...

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Takes the tokens by which the text grew since the draft, its anchor first.

        They usually are a path of the drafted tree, but need not be: another drafter may have found
        them. Nor need there be a draft: the first step drafts nothing, and so the last token of the
        prompt comes right after `prefill`. `scored` says what the target made of the whole draft,
        where that is known: a drafter may learn from it which of its guesses were wrong.
        """
        ...


@runtime_checkable
class TreeSearch(Protocol):
    """Chooses the shape of each tree of one text."""

    def choose(self, context_length: int) -> Shape:
        """Returns the shape of the next tree, `context_length` tokens into the text."""
        ...

    def observe(self, step: Step) -> None:
        """Learns from what a step accepted and what it took."""
        ...


@runtime_checkable
class AcceptanceRule(Protocol):
    """Decides which path of a draft is accepted, and which token comes after it.

    The emitted tokens have the distribution of sampling from the target one by one.
    """

    def __call__(self, draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
        """Returns the accepted path and the target's own token after it.

        Raises:
            LosslessnessError: if the rule is not exact for such a draft.
        """
        ...


@runtime_checkable
class TargetModel(Protocol):
    """Loaded weights of a target, shared by its sessions."""

    def new_session(self) -> Target:
        """Returns a session with an empty state."""
        ...


@runtime_checkable
class SharedSearch(Protocol):
    """What a search has learned about a pair and a machine, shared by the sessions of its texts.

    Sessions may run in several threads at once. They never raise, nor learn wrongly, whatever the
    others do meanwhile.
    """

    def new_session(self) -> TreeSearch:
        """Returns the search for one text."""
        ...


@runtime_checkable
class DrafterModel(Protocol):
    """Loaded weights of a drafter, shared by its sessions."""

    def new_session(self) -> Drafter:
        """Returns a session with an empty state."""
        ...


@runtime_checkable
class PairModel(Protocol):
    """A target and its drafter, which may share weights or state."""

    @property
    def target(self) -> TargetModel:
        """The target alone, for plain decoding."""
        ...

    def new_sessions(self) -> tuple[Target, Drafter]:
        """Returns a session of each, both for one text."""
        ...
