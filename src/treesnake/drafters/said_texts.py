"""What a target said, as learning on the fly reads it: in the tokens of a drafter's network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int

from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.pieces import OpenPiece
from treesnake.drafters.text import TextDrafterModel
from treesnake.drafters.vocabulary import SAME_VOCABULARY, VocabularyMap
from treesnake.models.tree_network import TreeNetwork
from treesnake.prompt import Prompt

MOST_BEFORE = 256
"""Tokens of a prompt that are read before its answer; a longer one is cut at its beginning."""

MOST_WANTED = 4
"""Tokens that a place may want: the target's most probable ones there."""

NONE = -1
"""What stands for no token."""


@dataclass(frozen=True, eq=False)
class SaidText:
    """An answer of a target, as a session saw it.

    Attributes:
        prompt: what came before.
        token_ids: the prompt's last token, and the answer without its last.
        shares: for each of them the target's probable tokens behind it, and how much of their
            probability each has; nothing where that is not known.
        temperature: that these are of; 1 for greedy decoding.
    """

    prompt: Prompt
    token_ids: Sequence[int]
    shares: Sequence[Mapping[int, float]]
    temperature: float


@dataclass(frozen=True, eq=False)
class ReadText:
    """A text in the tokens of a network, and which of its outputs are wanted where.

    Attributes:
        token_ids: of the text.
        places: the tokens behind which something is wanted.
        wanted: outputs of the network, the most wanted first; `NONE` where there are fewer.
        shares: how much each of them is wanted; they add up to 1 or less.
        temperature: that the network's logits are divided by.
    """

    token_ids: Sequence[int]
    places: Int[np.ndarray, " places"]
    wanted: Int[np.ndarray, "places wanted"]
    shares: Float[np.ndarray, "places wanted"]
    temperature: float


@runtime_checkable
class TextReader(Protocol):
    """Reads what a target said for one network."""

    reads_shares: ClassVar[bool]
    """Whether it reads what the target held probable; else the text is enough."""

    @property
    def network(self) -> TreeNetwork:
        """The network."""
        ...

    def read(self, said: SaidText) -> ReadText:
        """Returns a text in the network's tokens."""
        ...


@dataclass(frozen=True, eq=False)
class SameTokenReader:
    """Reads for a network with the target's tokens, which learns what the target held probable.

    Attributes:
        model: the drafter.
    """

    model: NetworkDrafterModel

    reads_shares: ClassVar[bool] = True

    @property
    def network(self) -> TreeNetwork:
        """The drafter's network."""
        return self.model.network

    def read(self, said: SaidText) -> ReadText:
        """Returns the text, and the tokens that the target may have said."""
        vocabulary = self.model.vocabulary or SAME_VOCABULARY
        before = said.prompt.without_inputs().token_ids[:-1][-MOST_BEFORE:]
        token_ids = vocabulary.express([*before, *said.token_ids])
        wanted = [self._output_of(shares) for shares in said.shares]
        return _read_text(token_ids, len(before), wanted, said.temperature)

    def _output_of(self, shares: Mapping[int, float]) -> dict[int, float]:
        return {
            self._outputs[token]: share for token, share in shares.items() if token in self._outputs
        }

    @cached_property
    def _outputs(self) -> dict[int, int]:
        return outputs_by_token(self.model)


@dataclass(frozen=True, eq=False)
class OtherTokenReader:
    """Reads for a network that drafts in text, which learns how the text went on in its tokens.

    Attributes:
        model: the drafter.
    """

    model: TextDrafterModel

    reads_shares: ClassVar[bool] = False

    @property
    def network(self) -> TreeNetwork:
        """The drafter's network."""
        return self.model.own.network

    def read(self, said: SaidText) -> ReadText:
        """Returns the text with the conversation as the drafter's own template has it."""
        translation = self.model.translation
        reader = translation.reader
        own = translation.rendered(said.prompt.messages, is_answered=True)
        if said.prompt.inputs or own is None:
            before, piece = reader.read(OpenPiece(), said.prompt.without_inputs().token_ids)
        else:
            before, piece = reader.begin(own)
        closed, _ = reader.read(piece, said.token_ids[1:])  # what is open still changes
        first = max(len(before) - MOST_BEFORE, 0)
        tokens = [*before, *closed][first:]
        num_before = min(max(len(before) - first, 1), len(tokens))
        outputs = self._outputs
        wanted = [
            {outputs[token]: 1.0} if token in outputs else {} for token in tokens[num_before:]
        ]
        vocabulary = self.model.own.vocabulary or SAME_VOCABULARY
        return _read_text(vocabulary.express(tokens), num_before - 1, wanted, 1.0)

    @cached_property
    def _outputs(self) -> dict[int, int]:
        return outputs_by_token(self.model.own)


def outputs_by_token(model: NetworkDrafterModel) -> dict[int, int]:
    """Returns which output of a drafter's network each token has that it can say."""
    vocabulary: VocabularyMap = model.vocabulary or SAME_VOCABULARY
    state = model.network.new_state()
    num_outputs = state.extend([0], [-1]).shape[-1]
    known = vocabulary.known(torch.arange(num_outputs, dtype=torch.float64)[None])[0]
    tokens = vocabulary.known_ids(len(known)).tolist()
    return dict(zip(tokens, known.long().tolist(), strict=True))


def _read_text(
    token_ids: Sequence[int],
    first: int,
    wanted: Sequence[Mapping[int, float]],
    temperature: float,
) -> ReadText:
    """Returns a text whose places begin behind token `first`; those that want nothing are none."""
    places = [number for number, shares in enumerate(wanted) if shares]
    outputs = np.full((len(places), MOST_WANTED), NONE, np.int64)
    amounts = np.zeros((len(places), MOST_WANTED), np.float32)
    for row, place in enumerate(places):
        best = sorted(wanted[place].items(), key=lambda pair: -pair[1])[:MOST_WANTED]
        for column, (output, share) in enumerate(best):
            outputs[row, column], amounts[row, column] = output, share
    at = first + np.array(places, np.int64)
    return ReadText(token_ids, at, outputs, amounts, temperature)
