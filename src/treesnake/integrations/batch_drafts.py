"""Drafts for the texts of another engine's batch.

Such an engine gives the tokens of each text, and at best a name for it. A drafter's state is found
again by that name, or else by its text. A wrong or lost state would cost accepted tokens and never
the output, which is the engine's own.
"""

from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treesnake.chance import TorchRng
from treesnake.draft import Draft
from treesnake.drafters.load import AUTO, default_drafters, load_drafter
from treesnake.errors import TreesnakeError
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.options import LoadOptions
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter, DrafterModel
from treesnake.sampling import SamplingParams
from treesnake.serving.gathering import Gatherer, Turn, gathered_drafter
from treesnake.shape import Shape

MOST_TOGETHER = 32
"""Texts that share each pass of the drafter; of a larger batch some draft after the others."""

Tokens = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Row:
    """A text of a batch.

    Attributes:
        hint: what the engine calls it, or its place in the batch, which another text may have next.
        tokens: all of it. The last is the anchor of a tree.
        is_drafted: whether a draft is wanted; if not, the drafter only reads the text.
    """

    hint: Hashable
    tokens: Tokens
    is_drafted: bool = True


class BatchDrafts:
    """The states of a drafter for the texts of an engine.

    Args:
        model: the drafter.
        most_texts: the number of texts that are kept; the one unused for longest goes first.
    """

    def __init__(self, model: DrafterModel, most_texts: int) -> None:
        self._gatherer = Gatherer()
        self._model = gathered_drafter(model, self._gatherer)
        self._most_texts = most_texts
        self._texts: dict[_Text, None] = {}  # the one unused for longest comes first
        self._by_hint: dict[Hashable, _Text] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._texts)

    def draft(self, rows: Sequence[Row], shape: Shape) -> list[Draft | None]:
        """Returns a greedy draft for each row, or None where none is wanted.

        A drafter that fails for a text has no draft for it, and begins anew.
        """
        texts = self._texts_of(rows)
        drafts: list[Draft | None] = []
        for start in range(0, len(rows), MOST_TOGETHER):
            part = slice(start, start + MOST_TOGETHER)
            drafts += self._draft_together(texts[part], rows[part], shape)
        self._drop_unused(len(rows))
        return drafts

    def forget(self, hints: Iterable[Hashable]) -> None:
        """Drops texts that have ended, by the names that they had last."""
        for hint in hints:
            if (text := self._by_hint.pop(hint, None)) is not None:
                self._texts.pop(text, None)

    def _draft_together(
        self, texts: Sequence["_Text"], rows: Sequence[Row], shape: Shape
    ) -> list[Draft | None]:
        turns = self._gatherer.queue(len(rows))
        if len(rows) == 1:
            return [self._draft(texts[0], rows[0], shape, turns[0])]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(MOST_TOGETHER, "treesnake-draft")
        return list(self._pool.map(self._draft, texts, rows, [shape] * len(rows), turns))

    def _draft(self, text: "_Text", row: Row, shape: Shape, turn: Turn) -> Draft | None:
        try:
            with self._gatherer.live(turn=turn):
                return text.draft(row, shape)
        except TreesnakeError:
            text.restart(self._model.new_session())
            return None

    def _texts_of(self, rows: Sequence[Row]) -> list["_Text"]:
        """Finds the text of each row, or makes it; no two rows have one."""
        found: dict[int, _Text] = {}
        taken: set[_Text] = set()
        for index, row in enumerate(rows):
            hinted = self._by_hint.get(row.hint)
            if hinted is not None and hinted not in taken and hinted.continues_as(row.tokens):
                found[index] = hinted
                taken.add(hinted)
        for index, row in enumerate(rows):
            if index not in found:
                fitting = [
                    text
                    for text in self._texts
                    if text not in taken and text.continues_as(row.tokens)
                ]
                text = max(fitting, key=len, default=None) or _Text(self._model.new_session())
                found[index] = text
                taken.add(text)
        for index, row in enumerate(rows):
            self._texts.pop(found[index], None)
            self._texts[found[index]] = None
            self._by_hint[row.hint] = found[index]
        return [found[index] for index in range(len(rows))]

    def _drop_unused(self, num_rows: int) -> None:
        most_texts = max(self._most_texts, num_rows)
        if len(self._texts) <= most_texts:
            return
        while len(self._texts) > most_texts:
            del self._texts[next(iter(self._texts))]
        self._by_hint = {hint: text for hint, text in self._by_hint.items() if text in self._texts}


class _Text:
    """A drafter's session, and the text that it knows."""

    def __init__(self, drafter: Drafter) -> None:
        self.restart(drafter)

    def restart(self, drafter: Drafter) -> None:
        """Begins anew with an empty text."""
        self._drafter = drafter
        self._tokens: Tokens = np.empty(0, np.int32)
        self._is_drafted = False

    def __len__(self) -> int:
        return len(self._tokens)

    def continues_as(self, tokens: Tokens) -> bool:
        """Tells whether a text begins with this one."""
        length = len(self._tokens)
        if not 0 < length <= len(tokens) or self._tokens[-1] != tokens[length - 1]:
            return False
        return bool(np.array_equal(self._tokens, tokens[:length]))

    def draft(self, row: Row, shape: Shape) -> Draft | None:
        """Reads what is new of a row, and drafts if that is wanted."""
        new = row.tokens[len(self._tokens) :]
        if not len(new) and not row.is_drafted:
            return None
        if not self._is_drafted:
            self._drafter.prefill(Prompt(tuple(row.tokens.tolist())))
        elif len(new):
            self._drafter.commit([int(self._tokens[-1]), *new[:-1].tolist()])
            self._is_drafted = False
        self._tokens = row.tokens.copy()  # the engine goes on writing there
        if not row.is_drafted:
            return None
        draft = self._drafter.draft(int(row.tokens[-1]), shape, SamplingParams(), TorchRng(0))
        self._is_drafted = True
        return draft


def load_model_drafter(target: str, drafter: str, device: str) -> DrafterModel:
    """Returns a drafter by name.

    Args:
        target: the model of the engine, by name.
        drafter: "auto" is the model that comes with treesnake, without prompt lookup: engines
            verify as many tokens as are drafted, also where a guess is weak.
        device: where it runs.

    Raises:
        LoadError: if there is no such target or drafter.
    """
    checkpoint = find_checkpoint(target)
    name = default_drafters(checkpoint)[0] if drafter == AUTO else drafter
    return load_drafter(name, LoadOptions(device=device), target=checkpoint)
