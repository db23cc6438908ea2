"""Passes over the weights that all live texts share.

A pass of a small batch takes little more time than that of one text: most of it goes into reading
the weights. So a text that needs a pass waits until every live text needs one, and all that wait
run together. Nothing above a network changes: its states wait inside of `extend`.

Between passes texts take turns. Python runs one thread at a time anyway, and threads that all want
to go on at once take the interpreter from each other at every operation of torch.

Prompts are read part by part. Texts that read take turns, too, so that a short prompt need not wait
for the end of a long one, and after each part those that are past their prompts go on for a while.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock, local
from time import perf_counter

from jaxtyping import Float
from torch import Tensor

from treesnake.clock import book_sharing, book_wait, waited_s, work_clock
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.mixture import MixtureDrafterModel
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.text import TextDrafterModel
from treesnake.errors import BrokenModelError, InvalidInputError
from treesnake.models.tree_network import (
    ExactNetwork,
    LendingState,
    Part,
    TreeNetwork,
    TreeState,
    reads_inputs,
)
from treesnake.pairs import Pair, SelfPair
from treesnake.pauses import pausing
from treesnake.prompt import Prompt
from treesnake.protocols import DrafterModel, PairModel
from treesnake.states.snapshots import Snapshot
from treesnake.targets.network import NetworkTargetModel

SLOWEST_GAIN = 0.02
"""The least weight of a pass in what passes are believed to cost, so that costs follow the load."""

PASSES_FOR_READING = 0.5
"""Seconds of passes for each second of reading prompts, where texts wait for both: a text that is
past its prompt becomes three times as slow at most, and prompts take half as long again."""

DRAFTER, TARGET = 0, 1
"""Whose pass goes first: texts that draft meet the others in the target's pass."""


class TextGivenUpError(Exception):
    """Nobody wants the text any more whose prompt is being read."""


class PassCosts:
    """Splits the seconds of a shared pass into what each text of it costs.

    Reading the weights is for all texts alike, and each row (a node of a tree) takes time of its
    own. How much is which is learned from passes of different sizes, by least squares. Half of a
    pass is believed to be rows, until there were such passes. An even split would hide from a text
    what its tree costs the others.
    """

    def __init__(self) -> None:
        self._rows = self._seconds = self._variance = self._covariance = 0.0
        self._num = 0

    def observe(self, num_rows: int, seconds: float) -> None:
        """Learns from a pass; earlier ones count less and less."""
        self._num += 1
        gain = max(1 / self._num, SLOWEST_GAIN)
        off_rows, off_seconds = num_rows - self._rows, seconds - self._seconds
        self._rows += gain * off_rows
        self._seconds += gain * off_seconds
        self._variance = (1 - gain) * (self._variance + gain * off_rows**2)
        self._covariance = (1 - gain) * (self._covariance + gain * off_rows * off_seconds)

    def split(self, rows: Sequence[int], seconds: float) -> list[float]:
        """Returns the seconds of each text, which has so many rows; together they are the pass."""
        believed = self._seconds / (2 * max(self._rows, 1.0))
        row_s = (self._covariance + believed) / (self._variance + 1.0)
        row_s = min(max(row_s, 0.0), seconds / sum(rows))
        even_s = (seconds - row_s * sum(rows)) / len(rows)
        return [even_s + row_s * number for number in rows]


class Turn:
    """A text's turn to go on, once it is given."""

    def __init__(self) -> None:
        self._given = Lock()
        self._given.acquire()

    def give(self) -> None:
        """Lets the text go on."""
        self._given.release()

    def wait(self) -> None:
        """Waits until the turn is given."""
        self._given.acquire()


class _Asked(Turn):
    """The parts that one text needs a pass for."""

    def __init__(self, network: "GatheredNetwork", parts: Sequence[Part]) -> None:
        super().__init__()
        self.network = network
        self.parts = parts
        self.since = perf_counter()
        self.waited = waited_s()
        self.num_rows = sum(len(part.token_ids) for part in parts)
        self.logits: list[Tensor] | None = None
        self.error: Exception | None = None
        self.share_s = 0.0
        self.num_sharing = 1

    @property
    def is_done(self) -> bool:
        return self.logits is not None or self.error is not None

    def run_alone(self) -> None:
        started = work_clock()
        try:
            self.logits = self.network.inner.extend_all(self.parts)
        except Exception as error:  # noqa: BLE001 - it is raised to whoever asked
            self.error = error
        self.share_s += work_clock() - started


class Gatherer:
    """Gives live texts their turns, and runs what they ask for, one pass at a time.

    A text has its turn until it needs a pass, or has read a part of its prompt. When all live texts
    need a pass, a text among them runs it, on its own thread, for all of the same network.

    Attributes:
        num_passes: passes so far.
        num_parts: texts in them, all passes together.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._ready: deque[Turn] = deque()
        self._asked: list[_Asked] = []
        self._reading: deque[Turn] = deque()
        self._is_taken = False
        self._part_began: float | None = None
        self._owed_s = 0.0
        self._costs: dict[GatheredNetwork, PassCosts] = {}
        self._at_rest: list[Callable[[], None]] = []
        self._mine = local()
        self.num_passes = 0
        self.num_parts = 0

    def call_at_rest(self, function: Callable[[], None]) -> None:
        """Has a function called whenever no text can go on at once.

        A pass or a part of a prompt comes next, or nothing. The function must be quick and ask
        nothing of this gatherer.
        """
        self._at_rest.append(function)

    def queue(self, num_texts: int) -> list[Turn]:
        """Makes texts live all at once, so that none runs a pass before the others ask for theirs.

        Each must go on in a thread of its own, by `live` with one of these turns.
        """
        turns = [Turn() for _ in range(num_texts)]
        with self._lock:
            self._ready += turns
            if turns and not self._is_taken:
                self._is_taken = True
                self._pass_on()
        return turns

    @contextmanager
    def live(
        self, is_over: Callable[[], bool] = lambda: False, turn: Turn | None = None
    ) -> Iterator[None]:
        """Makes the text of this thread one of those that take turns.

        Args:
            is_over: whether nobody wants the text any more. While it reads its prompt, that raises
                TextGivenUpError.
            turn: one that `queue` returned.
        """
        self._mine.is_over = is_over
        if turn is None:
            self._take(self._ready)
        else:
            self._enter(turn)
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Lets the text of this thread read a prompt, a part in each turn."""
        if not self._has_turn:
            with self.live(), self.reading():
                yield
            return
        try:
            with pausing(self._next_part):
                yield
        finally:
            self._end_part()

    def extend_all(
        self, network: "GatheredNetwork", parts: Sequence[Part]
    ) -> list[Float[Tensor, "_ vocab"]]:
        """Waits for a pass with these parts; raises what they would raise alone."""
        if not self._has_turn:
            with self.live():
                return self.extend_all(network, parts)
        asked = _Asked(network, parts)
        with self._lock:
            self._asked.append(asked)
            self._pass_on()
        asked.wait()
        if not asked.is_done:
            self._run_next()
        # What others' parts took is no work of this text; some of it may be booked already.
        book_wait(asked.since + asked.share_s + waited_s() - asked.waited)
        book_sharing(asked.num_sharing)
        if asked.error is not None:
            raise asked.error
        assert asked.logits is not None
        return asked.logits

    @property
    def num_waiting(self) -> int:
        """Texts that could go on, or read on, and wait for their turn."""
        return len(self._ready) + len(self._reading)

    @property
    def _has_turn(self) -> bool:
        """Whether this thread's text is live; then it has its turn, or it would not ask."""
        return getattr(self._mine, "has_turn", False)

    def _take(self, queue: deque[Turn]) -> None:
        """Waits for a turn in a queue; one that this text has goes to the next."""
        turn = Turn()
        with self._lock:
            queue.append(turn)
            if self._has_turn or not self._is_taken:
                self._is_taken = True
                self._pass_on()
        self._enter(turn)

    def _enter(self, turn: Turn) -> None:
        since = perf_counter()
        turn.wait()
        book_wait(since)
        self._mine.has_turn = True

    def _leave(self) -> None:
        self._mine.has_turn = False
        with self._lock:
            self._pass_on()

    def _next_part(self) -> None:
        """Waits for the turn in which this text reads the next part of its prompt."""
        self._end_part()
        self._take(self._reading)
        if self._mine.is_over():
            raise TextGivenUpError
        self._part_began = perf_counter()

    def _end_part(self) -> None:
        """Notes what a part of a prompt took, if one was read in this turn."""
        if self._part_began is not None:
            self._owed_s = PASSES_FOR_READING * (perf_counter() - self._part_began)
            self._part_began = None

    def _pass_on(self) -> None:
        """Gives the turn to the next text.

        Those come first that have asked for nothing. Then one reads, unless those that need a pass
        are owed time; then one runs a pass.
        """
        if self._ready:
            self._ready.popleft().give()
            return
        for function in self._at_rest:
            function()
        if self._reading and (self._owed_s <= 0 or not self._asked):
            self._reading.popleft().give()
        elif self._asked:
            min(self._asked, key=lambda asked: asked.network.order).give()
        else:
            self._is_taken = False

    def _run_next(self) -> None:
        """Runs the pass of one network, without holding the lock."""
        with self._lock:
            first = min(self._asked, key=lambda asked: asked.network.order)
            together = [asked for asked in self._asked if asked.network is first.network]
            self._asked = [asked for asked in self._asked if asked.network is not first.network]
        began = perf_counter()
        try:
            _run(first.network.inner, together, self._costs.setdefault(first.network, PassCosts()))
        finally:
            self._owed_s -= perf_counter() - began
            with self._lock:
                self.num_passes += 1
                self.num_parts += len(together)
                self._ready += together[1:]


def _run(network: TreeNetwork, together: Sequence[_Asked], costs: PassCosts) -> None:
    """Runs parts in one pass; if that cannot be, each alone, so that one fault hurts one text."""
    rows = [asked.num_rows for asked in together]
    if len(together) == 1:
        together[0].run_alone()
        costs.observe(rows[0], together[0].share_s)
        return
    started = work_clock()
    try:
        logits = network.extend_all([part for asked in together for part in asked.parts])
    except Exception:  # noqa: BLE001 - whose fault it is comes out below
        for asked in together:
            asked.run_alone()
        return
    seconds = work_clock() - started
    costs.observe(sum(rows), seconds)
    for asked, share_s in zip(together, costs.split(rows, seconds), strict=True):
        asked.share_s, asked.num_sharing = share_s, len(together)
        asked.logits, logits = logits[: len(asked.parts)], logits[len(asked.parts) :]


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
        """Appends nodes to the trees of several texts in one pass, with those of other threads."""
        own = [replace(part, state=_inner(part.state)) for part in parts]
        return self.gatherer.extend_all(self, own)


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

        A long prompt runs part by part, and others go on in between.
        """
        with self.network.gatherer.reading():
            self.inner.prefill(prompt)

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Appends nodes below earlier ones, or below the text (-1); returns logits after each."""
        [logits] = self.network.extend_all([Part(self.inner, token_ids, parents)])
        return logits

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path into the text and forgets the tree; the path may be empty."""
        self.inner.commit(path)

    def snapshot(self) -> Snapshot:
        """Returns what is needed to come back to the text as it is now, without the tree."""
        return self.inner.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Makes the text that of a snapshot."""
        self.inner.restore(snapshot)

    def lent_to(self, network: TreeNetwork) -> TreeState:
        """Returns a state of another network on this text; see `LendingState`."""
        if not isinstance(self.inner, LendingState) or not isinstance(network, GatheredNetwork):
            raise InvalidInputError(
                f"the states of {type(self.network.inner).__name__} are not lent to "
                f"{type(network).__name__}; both networks of a pair share passes, or neither does"
            )
        return GatheredState(network, self.inner.lent_to(network.inner))

    def broken_model_error(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> BrokenModelError:
        """Returns the error for a model whose logits for this tree are no numbers."""
        return self.inner.broken_model_error(token_ids, parents)


def _inner(state: TreeState) -> TreeState:
    return state.inner if isinstance(state, GatheredState) else state


def gathered(pair: PairModel, gatherer: Gatherer) -> PairModel:
    """Returns a pair whose networks share passes, as far as it consists of networks.

    A pair of another kind runs as it is: passes of several texts wait for each other.
    """
    if isinstance(pair, SelfPair):
        target = GatheredNetwork(pair.target.network, gatherer, TARGET)
        copy = GatheredNetwork(pair.copy, gatherer, DRAFTER)
        return SelfPair(NetworkTargetModel(target), copy, pair.beside)
    if isinstance(pair, Pair) and isinstance(pair.target, NetworkTargetModel):
        target = GatheredNetwork(pair.target.network, gatherer, TARGET)
        return Pair(NetworkTargetModel(target), gathered_drafter(pair.drafter, gatherer))
    return pair


def gathered_drafter(drafter: DrafterModel, gatherer: Gatherer) -> DrafterModel:
    """Returns a drafter whose networks share passes; one without networks as it is."""
    match drafter:
        case NetworkDrafterModel():
            return replace(drafter, network=GatheredNetwork(drafter.network, gatherer, DRAFTER))
        case TextDrafterModel():
            network = GatheredNetwork(drafter.own.network, gatherer, DRAFTER)
            return replace(drafter, own=replace(drafter.own, network=network))
        case MixtureDrafterModel():
            networks = {id(stream.network): stream.network for stream in drafter.streams}
            shared = {
                name: GatheredNetwork(network, gatherer, DRAFTER)
                for name, network in networks.items()
            }
            streams = [
                replace(stream, network=shared[id(stream.network)]) for stream in drafter.streams
            ]
            return replace(drafter, streams=tuple(streams))
        case CompositeDrafterModel():
            parts = (drafter.first, drafter.second)
            return CompositeDrafterModel(*(gathered_drafter(part, gatherer) for part in parts))
    return drafter
