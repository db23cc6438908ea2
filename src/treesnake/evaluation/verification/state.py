"""Does a target hold the text that it should, whatever way it came there?

A recurrent state shows nothing of what is in it, so engines that corrupt it go on fluently. The
ways in which that happens are known from their bug reports; each is gone here on a user's own
target, and compared with decoding that never drafted, cut or reused anything.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.errors import InvalidInputError
from treesnake.evaluation.verification.evidence import StateCheck, StateEvidence
from treesnake.evaluation.verification.greedy import Report
from treesnake.evaluation.verification.plain import PATH_OF_ANCHOR, PlainDecoding
from treesnake.models.tree_network import Part
from treesnake.prompt import Prompt
from treesnake.protocols import Target, TargetModel
from treesnake.targets.network import NetworkTargetModel
from treesnake.tree import TokenTree

LONGEST = 129
"""Tokens of the longest text: a multiple of the usual chunks, and one more."""

SHORTEST = 48
"""Tokens that the context must hold."""

ROUNDING = 8.0
"""How many times the rounding between two plain ways counts as rounding."""

LEAST_LIMIT, LARGEST_LIMIT = 1e-3, 0.1
"""Relative errors that always and never pass: a state of another text is off by several tenths."""


Found = tuple[Sequence[int], Float[Tensor, " vocab"]]
"""A text, and what the target said after it."""


def verify_state(
    model: TargetModel, prompts: Sequence[Prompt], report: Report | None = None
) -> StateEvidence:
    """Goes ways to texts on which engines corrupt states in silence.

    Args:
        model: any target.
        prompts: texts whose tokens are used, joined and repeated if they are short.
        report: is told of the progress.

    Raises:
        InvalidInputError: if the context is too short.
    """
    text = _material(model, prompts)
    reference = _Reference(model, text)
    whole = [text[:9], text[:LONGEST]]
    rounding = max(reference.error((each, reference.at_once(each))) for each in whole)
    limit = min(max(LEAST_LIMIT, ROUNDING * rounding), LARGEST_LIMIT)
    checks = [StateCheck("a prompt at once", len(whole), rounding, limit)]
    ways = _Trial(model, text).ways()
    for number, (name, way) in enumerate(ways.items(), start=1):
        errors = [reference.error(found) for found in way()]
        if errors:
            checks.append(StateCheck(name, len(errors), max(errors), limit))
        if report:
            report("states", number, len(ways))
    return StateEvidence(rounding, tuple(checks))


class _Reference:
    """What the target says after texts that it read token by token from the first."""

    def __init__(self, model: TargetModel, text: Sequence[int]) -> None:
        self._plain = PlainDecoding(model)
        self._text = list(text)
        self._rows = self._along(text)

    def at_once(self, text: Sequence[int]) -> Float[Tensor, " vocab"]:
        """Returns the logits after a text that is prefilled in one part."""
        return self._plain.logits(Prompt.of(text))

    def error(self, found: Found) -> float:
        """Returns how far logits are from those of the reference, relative to their spread."""
        text, actual = found
        is_known = self._text[: len(text)] == list(text)
        expected = self._rows[len(text) - 1] if is_known else self._along(text)[-1]
        spread = (expected - expected.mean()).norm().clamp(min=torch.finfo(torch.float32).tiny)
        return float((actual - expected).norm() / spread)

    def _along(self, text: Sequence[int]) -> Float[Tensor, "tokens vocab"]:
        return self._plain.logits_along(Prompt.of(text[:1]), [*text[1:], text[-1]])


class _Trial:
    """A target, and tokens to try it with."""

    def __init__(self, model: TargetModel, text: Sequence[int]) -> None:
        self._model = model
        self.text = list(text)

    def ways(self) -> dict[str, Callable[[], Iterator[Found]]]:
        """Returns the ways by name."""
        return {
            "a step without a draft after one that accepted several": self._step_after_tree,
            "many rejected branches": self._rejected_branches,
            "a chunk's multiple plus one, after a prefix that was held": self._chunks_and_one,
            "parts of 1, 2 and 3 tokens": self._small_parts,
            "many parts that do not divide the prefix": self._uneven_parts,
            "several unequal texts in one pass": self._unequal_texts,
            "an edited text": self._edited_text,
            "more prompts than are kept, with drafts between": self._evicted_prompts,
            "a second way to a prefix": self._second_way,
            "a prefix with drafting on and off": self._drafting_on_and_off,
            "sessions that share a prefix, one step each": self._interleaved_sessions,
        }

    def _step_after_tree(self) -> Iterator[Found]:
        for start in (3, 20):
            session = self._session(self.text[:start])
            end = self._take_tree(session, start, 3)
            for length in range(end, end + 3):
                yield self._said(session, self.text[:length])
                session.commit(PATH_OF_ANCHOR)

    def _rejected_branches(self) -> Iterator[Found]:
        start = 12
        session = self._session(self.text[:start])
        for length in range(start, start + 6):
            self._score_tree(session, length, 1)
            session.commit(PATH_OF_ANCHOR)
        yield self._said(session, self.text[: start + 6])

    def _chunks_and_one(self) -> Iterator[Found]:
        for length in (17, 33, 65, LONGEST):
            if length < len(self.text):
                session = self._session(self.text[: length // 3])
                yield self._prefilled(session, self.text[:length])

    def _small_parts(self) -> Iterator[Found]:
        for size in (1, 2, 3):
            session = self._model.new_session()
            for end in range(size, 15, size):
                yield self._prefilled(session, self.text[:end])

    def _uneven_parts(self) -> Iterator[Found]:
        session = self._session(self.text[:10])
        for end in range(17, min(LONGEST, len(self.text)), 13):
            session.prefill(Prompt.of(self.text[:end]))
        yield self._prefilled(session, self.text[:LONGEST])

    def _unequal_texts(self) -> Iterator[Found]:
        if not isinstance(self._model, NetworkTargetModel):
            return
        network, lengths = self._model.network, (1, 4, 19, 2)
        states = [network.new_state() for _ in lengths]
        parts: list[Part] = []
        for state, length in zip(states, lengths, strict=True):
            state.prefill(Prompt.of(self.text[:length]))
            tree = self._tree(length, 2)[0]
            parts.append(Part(state, tree.tokens, tree.parents))
        for part, length, logits in zip(parts, lengths, network.extend_all(parts), strict=True):
            for node in range(len(part.token_ids)):
                path = TokenTree.of(part.token_ids, part.parents).path_tokens(node)
                yield [*self.text[: length - 1], *path], logits[node].float().cpu()
        for state, length in zip(states, lengths, strict=True):
            state.commit(PATH_OF_ANCHOR)
            logits = state.extend([self.text[length]], [-1])[0]
            yield self.text[: length + 1], logits.float().cpu()

    def _edited_text(self) -> Iterator[Found]:
        session = self._session(self.text[:25])
        self._take_tree(session, 25, 2)
        for kept in (24, 25, 9, 20, 1):
            yield self._prefilled(session, [*self.text[:kept], *self.text[30:36]])

    def _evicted_prompts(self) -> Iterator[Found]:
        first = self.text[:18]
        session = self._session(first)
        for number in range(9):
            other = [*self.text[: 2 + number], *self.text[20 + number : 26]]
            session.prefill(Prompt(tuple(other), borders=(2 + number,)))
            self._score_tree(session, len(other), 2, other)
            session.commit(PATH_OF_ANCHOR)
        yield self._prefilled(session, first)
        yield self._prefilled(session, self.text[:6])

    def _second_way(self) -> Iterator[Found]:
        session = self._session(self.text[:8])
        end = self._take_tree(session, 8, 4)
        session.prefill(Prompt.of([*self.text[:5], *self.text[:3]]))
        yield self._prefilled(session, self.text[: end + 5])
        session.prefill(Prompt(tuple(self.text[: end + 9]), borders=(end,)))
        yield self._prefilled(session, [*self.text[:end], *self.text[:4]])

    def _drafting_on_and_off(self) -> Iterator[Found]:
        for is_drafting in (True, False, True):
            session = self._session(self.text[:14])
            end = 14
            while end < 30:
                if is_drafting:
                    end = self._take_tree(session, end, 3)
                else:
                    self._said(session, self.text[:end])
                    session.commit(PATH_OF_ANCHOR)
                    end += 1
            yield self._prefilled(session, [*self.text[:30], *self.text[:7]])
            yield self._prefilled(session, [*self.text[:14], *self.text[3:7]])

    def _interleaved_sessions(self) -> Iterator[Found]:
        prefix = self.text[:10]
        others = [*prefix, *self.text[:12]]
        first, second = self._session(prefix), self._session(prefix)
        end = 10
        for length in (10, 11, 12):
            end = self._take_tree(first, end, 2)
            self._score_tree(second, length, 2, others)
            second.commit(PATH_OF_ANCHOR)
        yield self._said(first, self.text[:end])
        yield self._said(second, others[:13])

    def _session(self, text: Sequence[int]) -> Target:
        session = self._model.new_session()
        session.prefill(Prompt.of(text))
        return session

    def _prefilled(self, session: Target, text: Sequence[int]) -> Found:
        session.prefill(Prompt.of(text))
        return self._said(session, text)

    def _said(self, session: Target, text: Sequence[int]) -> Found:
        """Scores the last token of the text that a session holds."""
        return text, session.score(TokenTree.chain([text[-1]]))[0].float().cpu()

    def _take_tree(self, session: Target, length: int, num_accepted: int) -> int:
        """Scores a tree and commits what is text of it; returns the number of tokens now."""
        path = self._score_tree(session, length, num_accepted)
        session.commit(path)
        return length + len(path)

    def _score_tree(
        self,
        session: Target,
        length: int,
        num_accepted: int,
        text: Sequence[int] | None = None,
    ) -> tuple[int, ...]:
        tree, path = self._tree(length, num_accepted, text)
        session.score(tree)
        return path

    def _tree(
        self, length: int, num_accepted: int, text: Sequence[int] | None = None
    ) -> tuple[TokenTree, tuple[int, ...]]:
        """Returns a tree over the last of some tokens, in which a wrong node precedes each right.

        The path is that of the nodes which are the text's own.
        """
        text = self.text if text is None else text
        tokens, parents, path = [text[length - 1]], [-1], [0]
        for number in range(num_accepted):
            right = self.text[(length + number) % len(self.text)]
            wrong = next(token for token in self.text if token != right)
            tokens += [wrong, right, wrong]
            parents += [path[-1], path[-1], len(tokens) - 3]
            path.append(len(tokens) - 2)
        return TokenTree.of(tokens, parents), tuple(path)


def _material(model: TargetModel, prompts: Sequence[Prompt]) -> list[int]:
    """Returns tokens for a text as long as is needed, or as the context allows."""
    tokens = [token for prompt in prompts for token in prompt.token_ids]
    if len(set(tokens)) < 2:  # a wrong token must be another than the right one
        tokens += [0, 1]
    context = model.new_session().context_length
    if context is not None and context < SHORTEST:
        raise InvalidInputError(
            f"the context holds {context} tokens; looking at states takes {SHORTEST}"
        )
    size = LONGEST + 1 if context is None else min(LONGEST + 1, context - 1)
    return (tokens * (size // len(tokens) + 1))[:size]
