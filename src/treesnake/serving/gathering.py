"""Passes over the weights that all live texts share.

A pass of a small batch takes little more time than that of one text: most of it goes into reading
the weights. So a text that needs a pass waits until every live text needs one, or for a moment, and
all that wait run together. Nothing above a network changes: its states wait inside of `extend`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Condition
from time import perf_counter

from jaxtyping import Float
from torch import Tensor

from treesnake.clock import book_wait, waited_s, work_clock
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.errors import BrokenModelError
from treesnake.models.tree_network import (
    ExactNetwork,
    Part,
    TreeNetwork,
    TreeState,
    reads_inputs,
)
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.protocols import DrafterModel, PairModel
from treesnake.states.snapshots import Snapshot
from treesnake.targets.network import NetworkTargetModel

PATIENCE_S = 0.002
"""How long a text waits for others that are about to need a pass, too."""

DRAFTER, TARGET = 0, 1
"""Whose pass goes first: texts that draft meet the others in the target's pass."""


class _Asked:
    """What one text waits for."""

    def __init__(self, network: "GatheredNetwork", part: Part) -> None:
        self.network = network
        self.part = part
        self.since = perf_counter()
        self.waited = waited_s()
        self.logits: Tensor | None = None
        self.error: Exception | None = None
        self.share_s = 0.0

    @property
    def is_done(self) -> bool:
        return self.logits is not None or self.error is not None

    def run_alone(self) -> None:
        started = work_clock()
        try:
            [self.logits] = self.network.inner.extend_all([self.part])
        except Exception as error:  # noqa: BLE001 - it is raised to whoever asked
            self.error = error
        self.share_s += work_clock() - started


class Gatherer:
    """Runs what the states of live texts ask for, one pass at a time.

    Whichever text finds that it need not wait runs the pass, on its own thread, for all.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._asked: list[_Asked] = []
        self._num_live = 0
        self._is_running = False
        self.num_passes = 0
        self.num_parts = 0

    @contextmanager
    def live(self, number: int = 1) -> Iterator[None]:
        """Counts a text among those that soon need a pass; -1 takes one out for a while."""
        self._count(number)
        try:
            yield
        finally:
            self._count(-number)

    def extend(self, network: "GatheredNetwork", part: Part) -> Float[Tensor, "new_nodes vocab"]:
        """Waits for a pass with this part; raises what the part would raise alone."""
        asked = _Asked(network, part)
        with self._changed:
            self._asked.append(asked)
            while not asked.is_done:
                rest_s = asked.since + PATIENCE_S - perf_counter()
                if self._is_running:
                    self._changed.wait()
                elif rest_s <= 0 or len(self._asked) >= self._num_live:
                    self._run_next()
                else:
                    self._changed.wait(rest_s)
        # What others' parts took is no work of this text; some of it may be booked already.
        book_wait(asked.since + asked.share_s + waited_s() - asked.waited)
        if asked.error is not None:
            raise asked.error
        assert asked.logits is not None
        return asked.logits

    def _count(self, number: int) -> None:
        with self._changed:
            self._num_live += number
            self._changed.notify_all()

    def _run_next(self) -> None:
        """Runs the pass of one network, without holding the lock."""
        first = min(self._asked, key=lambda asked: asked.network.order)
        together = [asked for asked in self._asked if asked.network is first.network]
        self._asked = [asked for asked in self._asked if asked.network is not first.network]
        self._is_running = True
        self._changed.release()
        try:
            _run(first.network.inner, together)
        finally:
            self._changed.acquire()
            self._is_running = False
            self.num_passes += 1
            self.num_parts += len(together)
            self._changed.notify_all()


def _run(network: TreeNetwork, together: Sequence[_Asked]) -> None:
    """Runs parts in one pass; if that cannot be, each alone, so that one fault hurts one text."""
    if len(together) == 1:
        together[0].run_alone()
        return
    started = work_clock()
    try:
        logits = network.extend_all([asked.part for asked in together])
    except Exception:  # noqa: BLE001 - whose fault it is comes out below
        for asked in together:
            asked.run_alone()
        return
    share_s = (work_clock() - started) / len(together)
    for asked, rows in zip(together, logits, strict=True):
        asked.share_s, asked.logits = share_s, rows


@dataclass(frozen=True, eq=False)
class GatheredNetwork:
    """A network whose states share passes.

    Attributes:
        inner: the weights.
        gatherer: runs the passes.
        order: the network with the least one goes first.
    """

    inner: TreeNetwork
    gatherer: Gatherer
    order: int

    @property
    def vocab_size(self) -> int:
        """The number of tokens that it reads."""
        return self.inner.vocab_size

    @property
    def context_length(self) -> int | None:
        """The number of tokens that fit, or None if there is no limit."""
        return self.inner.context_length

    @property
    def reads_inputs(self) -> bool:
        """Whether it reads what prompts bring beside tokens."""
        return reads_inputs(self.inner)

    def new_state(self) -> "GatheredState":
        """Returns the state of an empty text."""
        return GatheredState(self, self.inner.new_state())

    def new_exact_state(self) -> "GatheredState":
        """Returns the state of an empty text with the bits of a text, also where it branches."""
        inner = self.inner
        exact = isinstance(inner, ExactNetwork)
        return GatheredState(self, inner.new_exact_state() if exact else inner.new_state())

    def extend_all(self, parts: Sequence[Part]) -> list[Float[Tensor, "_ vocab"]]:
        """Appends nodes to the trees of several texts in one pass, without waiting for others."""
        return self.inner.extend_all([replace(part, state=_inner(part.state)) for part in parts])


class GatheredState:
    """A state that runs its passes with those of others; see `TreeState`."""

    def __init__(self, network: GatheredNetwork, inner: TreeState) -> None:
        self.network = network
        self.inner = inner

    @property
    def length(self) -> int:
        """The number of tokens in the text."""
        return self.inner.length

    @property
    def num_bytes(self) -> int:
        """What the text takes in memory."""
        return self.inner.num_bytes

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last.

        A long prompt runs part by part, each of which others may wait for, but not for all of them.
        """
        with self.network.gatherer.live(-1):
            self.inner.prefill(prompt)

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Appends nodes below earlier ones, or below the text (-1); returns logits after each."""
        return self.network.gatherer.extend(self.network, Part(self.inner, token_ids, parents))

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path into the text and forgets the tree; the path may be empty."""
        self.inner.commit(path)

    def snapshot(self) -> Snapshot:
        """Returns what is needed to come back to the text as it is now, without the tree."""
        return self.inner.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Makes the text that of a snapshot."""
        self.inner.restore(snapshot)

    def broken_model_error(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> BrokenModelError:
        """Returns the error for a model whose logits for this tree are no numbers."""
        return self.inner.broken_model_error(token_ids, parents)


def _inner(state: TreeState) -> TreeState:
    return state.inner if isinstance(state, GatheredState) else state


def gathered(pair: PairModel, gatherer: Gatherer) -> PairModel:
    """Returns a pair whose networks share passes, as far as it consists of networks.

    Drafters of other kinds, and pairs that share a state, run as they are: passes of several texts
    wait for each other.
    """
    if not isinstance(pair, Pair) or not isinstance(pair.target, NetworkTargetModel):
        return pair
    target = NetworkTargetModel(GatheredNetwork(pair.target.network, gatherer, TARGET))
    return Pair(target, gathered_drafter(pair.drafter, gatherer))


def gathered_drafter(drafter: DrafterModel, gatherer: Gatherer) -> DrafterModel:
    """Returns a drafter whose networks share passes; one of another kind is returned as it is."""
    if isinstance(drafter, NetworkDrafterModel):
        network = GatheredNetwork(drafter.network, gatherer, DRAFTER)
        return replace(drafter, network=network)
    if isinstance(drafter, CompositeDrafterModel):
        return CompositeDrafterModel(
            gathered_drafter(drafter.first, gatherer), gathered_drafter(drafter.second, gatherer)
        )
    return drafter
