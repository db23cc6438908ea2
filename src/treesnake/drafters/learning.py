"""Sees what a target says in a text, for a drafter that learns from it."""

from collections.abc import Sequence
from math import log
from pathlib import Path

import numpy as np

from treesnake.clock import work_clock
from treesnake.draft import Draft, Scored
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.kept_output import KeptOutput
from treesnake.drafters.learner import TIME_SHARE, Learner
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.said_texts import OtherTokenReader, SaidText, SameTokenReader, TextReader
from treesnake.drafters.text import TextDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.loading.checkpoint import Checkpoint
from treesnake.loading.kept_memory import made_from
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter
from treesnake.sampling import Distributions, Rng, SamplingParams
from treesnake.shape import Shape

LearnLike = bool | str | Path
"""Whether a drafter learns, or the folder where that is kept."""

LEAST_LOG_RATIO = log(0.05)
"""Tokens that are less probable, beside the most probable one, are not worth learning."""


class LearningDrafter:
    """Drafts what another drafter drafts, and sees what the target makes of the text.

    It takes notes of a text unless the learner has enough of them when the text begins.

    Args:
        drafter: any session.
        learner: gets each answer when the next prompt begins, or when `finish` is called.
    """

    def __init__(self, drafter: Drafter, learner: Learner) -> None:
        self._drafter = drafter
        self._learner = learner
        self._begin(None)

    @property
    def num_bytes(self) -> int:
        """What the text takes in memory."""
        return getattr(self._drafter, "num_bytes", 0)

    def prefill(self, prompt: Prompt) -> None:
        """Hands over the answer before, and begins another."""
        self.finish()
        self._begin(prompt)
        self._drafter.prefill(prompt)

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Returns the drafter's draft."""
        self._begun = work_clock()
        return self._drafter.draft(anchor, shape, params, rng)

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Takes note of the tokens, and of what the target held probable behind each."""
        self._drafter.commit(token_ids, scored)
        if self._takes_notes:
            self._tokens += token_ids
            if scored is None or not self._learner.reads_shares:
                self._shares += [{}] * len(token_ids)
            else:
                self._shares += [_probable(scored.target, node) for node in scored.path]
        if scored is not None:
            self._temperature = scored.target.params.temperature or 1.0
            self._decoding_s += work_clock() - self._begun

    def finish(self) -> None:
        """Hands over what there is of the answer, to be learned from aside."""
        if self._prompt is not None and self._decoding_s > 0:
            said = SaidText(self._prompt, self._tokens, self._shares, self._temperature)
            self._learner.add(said if self._takes_notes else None, self._decoding_s)
            self._learner.learn_aside()
        self._begin(None)

    def _begin(self, prompt: Prompt | None) -> None:
        self._prompt = prompt
        self._takes_notes = prompt is not None and not self._learner.has_enough
        self._tokens: list[int] = []
        self._shares: list[dict[int, float]] = []
        self._temperature = 1.0
        self._begun = self._decoding_s = 0.0


def _probable(target: Distributions, node: int) -> dict[int, float]:
    """Returns the probable tokens behind a node, without the sum over all tokens."""
    row = target.logits[node].float().numpy(force=True)
    best = int(row.argmax())
    if target.params.is_greedy:
        return {best: 1.0}
    temperature = target.params.temperature
    tokens = np.flatnonzero(row >= row[best] + temperature * LEAST_LOG_RATIO)
    shares = np.exp((row[tokens] - row[best]) / temperature)
    return dict(zip(tokens.tolist(), (shares / shares.sum()).tolist(), strict=True))


def learner_of(
    drafter: object, kept: KeptOutput | None = None, time_share: float = TIME_SHARE
) -> Learner:
    """Returns what teaches the network of a drafter, which may be joined with others.

    Args:
        drafter: a model of drafters.
        kept: where what is learned is kept.
        time_share: the share of the seconds of decoding that learning may take.

    Raises:
        InvalidInputError: if it has no network that can learn, or several.
    """
    return Learner(reader_of(drafter), kept, time_share)


def reader_of(drafter: object) -> TextReader:
    """Returns what reads texts for the one network of a drafter that can learn.

    Raises:
        InvalidInputError: if there is none, or several.
    """
    readers = _readers(drafter)
    if len(readers) != 1:
        raise InvalidInputError(
            f"a drafter learns if it is one Mamba or Mamba-2, perhaps joined with prompt lookup; "
            f"this {type(drafter).__name__} has {len(readers) or 'none'} that can learn: choose "
            "another drafter, such as auto, or leave learning out"
        )
    return readers[0]


def _readers(drafter: object) -> list[TextReader]:
    if isinstance(drafter, CompositeDrafterModel):
        return [*_readers(drafter.first), *_readers(drafter.second)]
    if isinstance(drafter, NetworkDrafterModel):
        return [SameTokenReader(drafter)]
    return [OtherTokenReader(drafter)] if isinstance(drafter, TextDrafterModel) else []


def open_learner(chosen: LearnLike, drafter: object, target: Checkpoint) -> Learner | None:
    """Returns what teaches a drafter, with what its folder holds of earlier processes.

    Args:
        chosen: as in `SpeculativeDecoder.from_pretrained`.
        drafter: a model of drafters.
        target: that it drafts for.

    Raises:
        InvalidInputError: if the drafter cannot learn, or the folder cannot be made.
    """
    if chosen is False:
        return None
    if chosen is True:
        return learner_of(drafter)
    if not isinstance(chosen, str | Path) or not str(chosen):
        raise InvalidInputError(f"learn must be True, False or a folder, got {chosen!r}")
    return learner_of(drafter, KeptOutput(Path(chosen).expanduser(), made_from(target)))
