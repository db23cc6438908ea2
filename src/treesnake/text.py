"""From tokens to text as they arrive: nothing is shown that a later token could still change.

The text of a continuation is what it adds to its prompt: the decoding of both together, without
the beginning that it shares with the decoding of the prompt alone. A tokenizer that drops the
space before the first token of a text thus keeps the space before the first token of an answer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that are no character yet."""

LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8."""

LONGEST_TIDIED = 16
"""Characters at the end of a text that decoders may still rewrite, such as a space before "n't"."""

FEWEST_TOKENS, MOST_TOKENS = 8, 24
"""How many of the last tokens are decoded again with each new one."""

Decode = Callable[[Sequence[int]], str]
"""Turns token ids into text, without the names of special tokens."""

NumSettled = Callable[[Sequence[int], str], int]
"""Takes tokens and their text; returns how many characters no later token can change."""


def settled_if_tidied(token_ids: Sequence[int], text: str) -> int:
    """Returns the number of characters that decoders leave alone which tidy up what they wrote."""
    return max(len(text) - LONGEST_TIDIED, 0)


def settled_if_appended(token_ids: Sequence[int], text: str) -> int:
    """Returns the number of characters where only the bytes of the last one may be missing."""
    end = text[-LONGEST_CHARACTER + 1 :]
    return len(text) - len(end) + len(end.rstrip(REPLACEMENT))


def _no_name(token_id: int) -> str:
    return ""


@dataclass(frozen=True)
class Decoding:
    """How a tokenizer turns tokens into text.

    Attributes:
        decode: what it writes.
        num_settled: how much of that is certain; by default all but the last few characters.
        name_of: the name of a token that `decode` leaves out, "" for all others.
    """

    decode: Decode
    num_settled: NumSettled = settled_if_tidied
    name_of: Callable[[int], str] = _no_name


@dataclass(frozen=True)
class _Text:
    """A text that may still grow.

    Attributes:
        visible: what is shown of it.
        names: special tokens in between: how many visible characters are before each, and its name.
        num_settled: visible characters that no later token can change.
    """

    visible: str
    names: tuple[tuple[int, str], ...] = ()
    num_settled: int = 0

    def find_first(self, strings: Iterable[str]) -> int | None:
        """Returns before which visible character the first of the strings begins."""
        full = self._full(len(self.visible))
        starts = [
            start
            for string in strings
            for start in (self.visible.find(string), self._visible_before(full.find(string)))
            if start >= 0
        ]
        return min(starts, default=None)

    def num_certain(self, strings: Iterable[str]) -> int:
        """Returns how many settled characters cannot be in one of the strings that begins there."""
        settled, full = self.visible[: self.num_settled], self._full(self.num_settled)
        starts = [
            start
            for string in strings
            for start in (
                len(settled) - _num_begun(settled, string),
                self._visible_before(len(full) - _num_begun(full, string)),
            )
        ]
        return min(starts, default=len(settled))

    def _full(self, end: int) -> str:
        """Returns the text up to a visible character, with the names of special tokens in it."""
        parts: list[str] = []
        start = 0
        for index, name in self.names:
            if index <= end:
                parts += [self.visible[start:index], name]
                start = index
        return "".join([*parts, self.visible[start:end]])

    def _visible_before(self, full_index: int) -> int:
        """Returns how many visible characters are before one of the full text; -1 stays -1."""
        num_hidden = 0
        for index, name in self.names:
            num_hidden += min(max(full_index - index - num_hidden, 0), len(name))
        return full_index - num_hidden


class _Window:
    """The end of a text, as far back as the decoder looks to write what comes next.

    The cost of a token does not depend on the length of the text.

    Args:
        decoding: how tokens become text.
        prompt: what the text continues.
    """

    def __init__(self, decoding: Decoding, prompt: Sequence[int]) -> None:
        self._decoding = decoding
        self._tokens = self._prompt_window(prompt)
        self._prompt_text: str | None = decoding.decode(self._tokens)
        self._num_taken = 0
        self._rest = "", 0

    def read(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """Returns what was not taken yet, as new tokens leave it, and how much is settled."""
        if not token_ids:
            return self._rest
        tokens = [*self._tokens, *token_ids]
        text = self._decoding.decode(tokens)
        start = self._start(text)
        return text[start:], max(self._decoding.num_settled(tokens, text) - start, 0)

    def take(self, token_ids: Sequence[int]) -> str:
        """Adds tokens, and takes and returns the settled text."""
        self._tokens += token_ids
        text = self._decoding.decode(self._tokens)
        start, end = self._start(text), self._decoding.num_settled(self._tokens, text)
        if self._prompt_text is not None and not start < end and end < len(self._prompt_text):
            self._rest = text[start:], 0
            return ""  # later tokens may still change the end of the prompt
        self._prompt_text, self._num_taken = None, max(start, end)
        self._rest = text[self._num_taken :], 0
        if len(self._tokens) > MOST_TOKENS:
            self._forget(text)
        return text[start:end]

    def _start(self, text: str) -> int:
        if self._prompt_text is None:
            return min(self._num_taken, len(text))
        return len(shared_beginning(self._prompt_text, text))

    def _prompt_window(self, prompt: Sequence[int]) -> list[int]:
        """Returns so many of the last tokens that more of them would not change their text."""
        size = FEWEST_TOKENS
        while size < len(prompt):
            shorter, longer = (
                self._decoding.decode(list(prompt[-number:])) for number in (size, 2 * size)
            )
            if _end_alike(shorter, longer, 2 * LONGEST_TIDIED):
                break
            size *= 2
        return list(prompt[-size:])

    def _forget(self, text: str) -> None:
        """Drops the first tokens if the rest is written in the same way without them."""
        num_needed = len(text) - self._num_taken + LONGEST_TIDIED
        size = FEWEST_TOKENS
        while size < len(self._tokens):
            shorter = self._decoding.decode(self._tokens[-size:])
            if _end_alike(shorter, text, num_needed):
                self._num_taken -= len(text) - len(shorter)
                self._tokens = self._tokens[-size:]
                return
            size *= 2


class TextAssembler:
    """Turns growing tokens into growing text, and ends it before the first stop string.

    A piece is held back while a later token could change it, and while it could be the beginning of
    a stop string. Stop strings are looked for in the text as it is shown and as it is with the
    names of special tokens.

    Args:
        decode: turns token ids into text; if it is no `Decoding`, it may tidy up what it wrote.
        stop_strings: the text ends before the first of them.
        prompt: what the text continues.
    """

    def __init__(
        self,
        decode: Decode | Decoding,
        stop_strings: Sequence[str] = (),
        prompt: Sequence[int] = (),
    ) -> None:
        self._decoding = decode if isinstance(decode, Decoding) else Decoding(decode)
        self._stop_strings = tuple(stop_strings)
        self._window = _Window(self._decoding, prompt)
        self._released = ""
        self._names: tuple[tuple[int, str], ...] = ()
        self._ended = False

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes new tokens and returns the text that is certain by now."""
        if self._ended:
            return ""
        self._names = self._names_with(token_ids)
        self._released += self._window.take(token_ids)
        text = self._text()
        end, num_certain = text.find_first(self._stop_strings), text.num_certain(self._stop_strings)
        # A stop string that is not whole yet may have begun before the one that is.
        self._ended = end is not None and end <= num_certain
        num_shown = num_certain if end is None else min(end, num_certain)
        self._released = self._released[num_shown:]
        self._names = tuple(
            (index - num_shown, name) for index, name in self._names if index >= num_shown
        )
        return text.visible[:num_shown]

    def is_ended_by(self, token_ids: Sequence[int]) -> bool:
        """Tells whether the text has a stop string once it has these tokens; takes none of them."""
        return self._text(token_ids).find_first(self._stop_strings) is not None

    @property
    def held(self) -> str:
        """The text that is held back, as it is if no more tokens come."""
        if self._ended:
            return ""
        text = self._text()
        return text.visible[: text.find_first(self._stop_strings)]

    def finish(self) -> str:
        """Returns the text that was held back, since no more tokens will come."""
        held = self.held
        self._ended = True
        return held

    def _text(self, token_ids: Sequence[int] = ()) -> _Text:
        """Returns all text that was not shown yet."""
        unsettled, num_settled = self._window.read(token_ids)
        visible, num_released = self._released + unsettled, len(self._released)
        names = tuple((min(at, len(visible)), name) for at, name in self._names_with(token_ids))
        return _Text(visible, names, num_released + num_settled)

    def _names_with(self, token_ids: Sequence[int]) -> tuple[tuple[int, str], ...]:
        """Returns the names of special tokens that were not shown, each with what is before it."""
        if not self._stop_strings:
            return ()
        names = list(self._names)
        for index, token in enumerate(token_ids):
            if name := self._decoding.name_of(token):
                before = len(self._released) + len(self._window.read(token_ids[:index])[0])
                names.append((max(before, *(at for at, _ in names[-1:]), 0), name))
        return tuple(names)


def shared_beginning(first: str, second: str) -> str:
    """Returns what two texts begin with in common."""
    if second.startswith(first):
        return first
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((index for index, (a, b) in pairs if a != b), len(second))]


def _num_begun(text: str, string: str) -> int:
    """Returns the length of the longest end of the text with which a string begins."""
    lengths = range(min(len(string) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(string[:length])), 0)


def _end_alike(shorter: str, longer: str, num_characters: int) -> bool:
    return len(shorter) >= num_characters and longer.endswith(shorter[-num_characters:])
