"""From tokens to text as they arrive: nothing is shown that a later token could still change."""

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that are no character yet."""


class TextAssembler:
    """Turns growing tokens into growing text, and ends it before the first stop string.

    A piece is held back while it could be the beginning of a stop string, and while its last
    character lacks bytes.

    Args:
        decode: turns token ids into text.
        stop_strings: the text ends before the first of them.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop_strings: Sequence[str] = ()
    ) -> None:
        self._decode = decode
        self._stop_strings = tuple(stop_strings)
        self._tokens: list[int] = []
        self._num_read = 0
        self._context_start = 0
        self._held = ""
        self._ended = False

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes new tokens and returns the text that is certain by now."""
        self._tokens += token_ids
        text = self._unread_text()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._context_start, self._num_read = self._num_read, len(self._tokens)
        return self._release(text)

    @property
    def held(self) -> str:
        """The text that is held back, as it is if no more tokens come."""
        if self._ended:
            return ""
        text = self._held + self._unread_text()
        return text[: self._find_end(text)]

    def finish(self) -> str:
        """Returns the text that was held back, since no more tokens will come."""
        held = self.held
        self._ended = True
        return held

    def _unread_text(self) -> str:
        """Returns the text of unread tokens; some decoders look at the tokens before them."""
        known = self._decode(self._tokens[self._context_start : self._num_read])
        text = self._decode(self._tokens[self._context_start :])
        return text[len(known) :]

    def _release(self, text: str) -> str:
        if self._ended:
            return ""
        text = self._held + text
        end = self._find_end(text)
        num_certain = len(text) - self._num_held(text)
        # A stop string that is not whole yet may have begun before the one that is.
        if end is not None and end <= num_certain:
            self._ended = True
            return text[:end]
        self._held = text[num_certain:]
        return text[:num_certain]

    def _find_end(self, text: str) -> int | None:
        """Returns where the first stop string begins."""
        return min(
            (start for string in self._stop_strings if (start := text.find(string)) >= 0),
            default=None,
        )

    def _num_held(self, text: str) -> int:
        """Returns the length of the longest end of the text that begins a stop string."""
        return max(
            (
                length
                for string in self._stop_strings
                for length in range(1, min(len(string), len(text) + 1))
                if text.endswith(string[:length])
            ),
            default=0,
        )
