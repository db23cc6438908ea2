"""Several readings of one request, drafted from as one: an ensemble of streams.

A *stream* is a network and a *view*, which is how it reads the prompt: with its pictures, as text
alone, with captions in their place. All streams go on with the same drafted tokens, and a token
comes from the weighted sum of their distributions. The weights follow what the target says (TABED,
Lee et al. 2026).

Each stream's distribution has the temperature that is sampled with, 1 where that is 0; top-k, top-p
and min-p apply to the mixture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import inf

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.clock import work_clock
from treesnake.draft import Draft, Scored
from treesnake.drafters.draft_state import DraftState
from treesnake.drafters.first_weights import FirstWeights
from treesnake.drafters.growing import GrownDraft, grow
from treesnake.drafters.late import LateDrafter
from treesnake.drafters.stream_prices import Gains, LevelCosts, Members
from treesnake.drafters.views import View, natural_view
from treesnake.drafters.vocabulary import SAME_VOCABULARY, VocabularyMap
from treesnake.drafters.weight_rules import Evidence, Hedge, WeightRule, uniform
from treesnake.errors import InvalidInputError
from treesnake.models.tree_network import TreeNetwork
from treesnake.prompt import Key, Prompt
from treesnake.sampling import Rng, SamplingParams, log_of, to_probs
from treesnake.shape import OFF, Shape, is_off
from treesnake.threads import on_one_thread

LEAST_WEIGHT = 0.05
"""A stream that counts for less is left out, whatever it takes."""

RETRY_STEPS = 16
"""After so many steps with streams left out, all run again."""

TRIAL_STEPS = 4
"""For so many steps no stream is left out then, and at the beginning."""


@dataclass(frozen=True, eq=False)
class Stream:
    """A way to read a request.

    Attributes:
        name: what it is called in reports.
        network: the weights, which streams may share.
        view: makes its prompt of the target's; None for what suits the network.
        vocabulary: how the network's tokens relate to the target's; None if they are the same.
    """

    name: str
    network: TreeNetwork
    view: View | None = None
    vocabulary: VocabularyMap = SAME_VOCABULARY


@dataclass(frozen=True, eq=False)
class MixtureDrafterModel:
    """Makes sessions of streams that draft together.

    The streams of one network share each of its passes. A stream whose text outgrows the context of
    its network is left out, and so is one that takes more time than it brings tokens. A text begins
    with weights that earlier ones ended with.

    Attributes:
        streams: one or more, with names that differ.
        rule: how much each stream counts.
        least_weight: a stream that counts for less is left out, until all run again.
        clock: tells the seconds that drafting takes; None leaves no stream out for its price.

    Raises:
        InvalidInputError: if there is no stream, two have one name, or the rule is for another
            number of streams.
    """

    streams: tuple[Stream, ...]
    rule: WeightRule = field(default_factory=Hedge)
    least_weight: float = LEAST_WEIGHT
    clock: Callable[[], float] | None = work_clock
    costs: LevelCosts = field(default_factory=LevelCosts, init=False, repr=False)
    first_weights: FirstWeights = field(default_factory=FirstWeights, init=False, repr=False)

    def __post_init__(self) -> None:
        names = [stream.name for stream in self.streams]
        if not names or len({*names}) < len(names):
            raise InvalidInputError(
                f"a mixture needs streams with names of their own, got {names or 'none'}"
            )
        if not 0 <= self.least_weight < 1:
            raise InvalidInputError(
                f"the least weight of a stream is at least 0 and below 1, got {self.least_weight}"
            )
        self.rule.start(uniform(len(names)))

    def new_session(self) -> LateDrafter:
        """Returns a session with empty states."""
        return LateDrafter(MixtureDrafter(self))


class MixtureDrafter:
    """A session: the streams' states of one text, and the weights as they are.

    Args:
        model: the streams and the rule.
    """

    def __init__(self, model: MixtureDrafterModel) -> None:
        self._model = model
        self._texts = tuple(
            DraftState(stream.network.new_state(), stream.vocabulary) for stream in model.streams
        )
        self._forget_text()

    @property
    def num_bytes(self) -> int:
        """What the texts of all streams take in memory."""
        return sum(text.num_bytes for text in self._texts)

    def prefill(self, prompt: Prompt) -> None:
        """Makes each stream hold every token of its view of the prompt but the last.

        Of two streams that read the same, one is enough: a prompt without images has one view.
        """
        self._forget_text()
        readings: set[tuple[int, tuple[Key, ...]]] = set()
        for index, (stream, text) in enumerate(zip(self._model.streams, self._texts, strict=True)):
            view = (stream.view or natural_view(stream.network))(prompt)
            reading = id(stream.network), view.key
            limit = stream.network.context_length
            if reading not in readings and (limit is None or len(view) <= limit):
                text.prefill(view)
                self._readable += (index,)
                readings.add(reading)

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Grows a tree over `anchor` from the mixture; see `treesnake.drafters.growing.grow`."""
        self._forget_draft()
        members = self._members(shape)
        if not members:
            self._grown = grow(anchor, OFF, params, rng, _nothing)
            return self._grown.draft
        for member in members:
            self._texts[member].catch_up()
        mixing = self._mixing = _Mixing(
            self._model, self._texts, members, self._shares(members), params
        )
        if not params.is_greedy:
            params = replace(params, temperature=1.0)  # the streams have it already
        started = self._now()
        self._grown = grow(anchor, shape, params, rng, mixing.extend, mixing.vocabulary)
        self._drafted_at = self._now()
        self._model.costs.observe(members, (self._drafted_at - started) / mixing.num_passes)
        return replace(self._grown.draft, stream_weights=mixing.weights)

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Takes tokens into all streams, and moves the weights by what the target said."""
        rest_s = self._now() - self._drafted_at
        seen = () if self._grown is None else self._grown.seen(token_ids)
        mixing = self._mixing
        for index in self._readable:
            was_run = mixing is not None and index in mixing.members
            self._texts[index].commit(seen if was_run else (), token_ids)
        if mixing is not None and scored is not None and seen:
            target_rows = [scored.target.probs[node] for node in scored.path[: len(seen)]]
            evidence = mixing.evidence(seen, target_rows)
            if self._model.clock is not None:
                self._gains = self._gains.after(
                    evidence, self._readable_weights, rest_s, is_greedy=mixing.is_greedy
                )
            self._weighing = self._model.rule.update(self._weighing, evidence)
            self._count_step(mixing.members)
            self._count_text()
        self._mixing = self._grown = None

    def _count_step(self, members: Members) -> None:
        """Lets all streams run again, if some were left out for long enough."""
        self._num_steps += 1
        if self._num_steps >= RETRY_STEPS and len(members) < len(self._readable):
            self._num_steps = 0

    def _count_text(self) -> None:
        """Lets later texts begin with the weights of this one, if it had a choice of streams."""
        if len(self._readable) > 1:
            self._model.first_weights.count(self._weighing.weights, self._counted)
            self._counted = self._weighing.weights

    def _members(self, shape: Shape) -> Members:
        """Returns the streams that draft a tree of the shape."""
        if is_off(shape):
            return ()
        able = tuple(index for index in self._readable if self._has_room(index, shape.depth))
        if self._num_steps < TRIAL_STEPS:
            return able
        shares = zip(able, self._shares(able), strict=True)
        heavy = [index for index, share in shares if share >= self._model.least_weight]
        if self._model.clock is None or len(heavy) < 2:
            return tuple(heavy)
        return self._worth_their_time(heavy, shape.depth)

    def _worth_their_time(self, members: Sequence[int], depth: int) -> Members:
        """Returns those of some streams that run, as many as make the most tokens per second."""
        ranked = sorted(members, key=lambda index: -self._weighing.weights[index])
        firsts = [tuple(sorted(ranked[:count])) for count in range(1, len(ranked) + 1)]
        level_s = [self._model.costs.seconds(each) for each in firsts]
        return firsts[self._gains.best_count(level_s, depth) - 1]

    def _has_room(self, index: int, depth: int) -> bool:
        limit = self._model.streams[index].network.context_length
        return limit is None or self._texts[index].length + depth <= limit

    @property
    def _readable_weights(self) -> Float[np.ndarray, " streams"]:
        """The weights of streams, 0 for those that read nothing of their own."""
        weights = np.zeros(len(self._texts))
        weights[list(self._readable)] = self._weighing.weights[list(self._readable)]
        return weights

    def _now(self) -> float:
        return 0.0 if self._model.clock is None else self._model.clock()

    def _shares(self, members: Sequence[int]) -> Float[np.ndarray, " members"]:
        """Returns the weights of those that draft; alike if the others have all the weight."""
        weights = self._weighing.weights[list(members)]
        return (
            weights / weights.sum()
            if weights.sum() > 0
            else np.full(len(members), 1 / len(members))
        )

    def _forget_text(self) -> None:
        self._forget_draft()
        num_streams = len(self._texts)
        self._readable: tuple[int, ...] = ()
        self._weighing = self._model.rule.start(self._model.first_weights.weights(num_streams))
        self._counted: Float[np.ndarray, " streams"] | None = None
        self._gains = Gains.none(num_streams)
        self._num_steps = 0

    def _forget_draft(self) -> None:
        """Empties the trees, also what was grown of them before an interruption."""
        self._grown: GrownDraft | None = None
        self._mixing: _Mixing | None = None
        self._drafted_at = 0.0
        for text in self._texts:
            text.forget_tree()


class _Mixing:
    """One draft: which streams run, with what weights, and what they said at each node.

    Streams with one vocabulary are mixed in the columns of their network's logits, others in those
    of the target's tokens.

    Args:
        model: all streams.
        texts: their states.
        members: those that run.
        shares: their weights.
        params: how the text is decoded; each stream's distribution has its temperature.

    Attributes:
        members: those that run.
        num_passes: how often they ran.
        is_greedy: whether the text is decoded greedily.
    """

    def __init__(
        self,
        model: MixtureDrafterModel,
        texts: Sequence[DraftState],
        members: Members,
        shares: Float[np.ndarray, " members"],
        params: SamplingParams,
    ) -> None:
        self.members = members
        self.num_passes = 0
        self.is_greedy = params.is_greedy
        self._streams = model.streams
        self._texts = texts
        self._shares = torch.from_numpy(shares).float()
        self._params = SamplingParams(temperature=params.temperature or 1.0)
        self._rows: list[Float[Tensor, "members columns"]] = []
        first = model.streams[members[0]].vocabulary
        is_shared = all(model.streams[member].vocabulary is first for member in members)
        self.vocabulary = first if is_shared else SAME_VOCABULARY
        members_of: dict[int, list[int]] = {}
        for member in members:
            members_of.setdefault(id(model.streams[member].network), []).append(member)
        self._passes = tuple(members_of.values())

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each stream by name, 0 for those that do not run."""
        shares = dict(zip(self.members, self._shares.tolist(), strict=True))
        return {each.name: shares.get(index, 0.0) for index, each in enumerate(self._streams)}

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes columns"]:
        """Appends nodes to the tree of each stream, and returns the mixture's log-probabilities."""
        self.num_passes += 1
        logits: dict[int, Float[Tensor, "new_nodes network_logits"]] = {}
        for members in self._passes:
            network = self._streams[members[0]].network
            parts = [self._texts[member].part(token_ids, parents) for member in members]
            for member, rows in zip(members, network.extend_all(parts), strict=True):
                logits[member] = rows[-len(token_ids) :]
        return self._mixed([logits[member] for member in self.members])

    def evidence(
        self, nodes: Sequence[int], target_rows: Sequence[Float[Tensor, " vocab"]]
    ) -> Evidence:
        """Returns what streams and target said after some nodes.

        A stream that did not run is taken to have said what the mixture said: then it neither gains
        nor loses by a step that it has no part in.
        """
        shares = column_of = None
        if len(self.members) < len(self._streams):
            shares = np.tile(self._shares.numpy(force=True), (len(self._streams), 1))
            shares[list(self.members)] = np.eye(len(self.members))
        if self.vocabulary is not SAME_VOCABULARY:
            column_of = _columns_by_token(self.vocabulary, self._rows[0].shape[-1])
        return Evidence(
            [self._rows[node].numpy(force=True) for node in nodes],
            [row.numpy(force=True) for row in target_rows],
            column_of,
            shares,
        )

    @on_one_thread
    def _mixed(
        self, logits: Sequence[Float[Tensor, "new_nodes _"]]
    ) -> Float[Tensor, "new_nodes columns"]:
        device = logits[0].device
        self._shares = self._shares.to(device)
        if self.vocabulary is SAME_VOCABULARY:
            vocabularies = [self._streams[member].vocabulary for member in self.members]
            logits = [
                each.spread(each.known(rows), -inf)
                for each, rows in zip(vocabularies, logits, strict=True)
            ]
        probs = to_probs(torch.stack([rows.to(device) for rows in logits]), self._params)
        self._rows += probs.unbind(1)
        return log_of(torch.tensordot(self._shares, probs, 1))


@lru_cache(maxsize=8)
def _columns_by_token(vocabulary: VocabularyMap, num_columns: int) -> Int[np.ndarray, " vocab"]:
    """Returns which column each of the target's tokens has, -1 for those that have none."""
    numbers = torch.arange(num_columns, dtype=torch.float64)[None]
    return vocabulary.spread(vocabulary.known(numbers), -1.0)[0].long().numpy()


def _nothing(token_ids: Sequence[int], parents: Sequence[int]) -> Float[Tensor, "_ vocab"]:
    raise AssertionError("a tree of the anchor alone runs no network")
