"""A text in a drafter's own tokens, of which all but the last piece never change.

A recurrent state cannot be rolled back, and a tokenizer writes the end of a text otherwise once the
text goes on: "inter" becomes part of " international". So a text is cut at *borders*, places that
no token spans, whatever comes behind them. What is before the last border is held for good. The
open piece behind it is encoded anew whenever it grows.

A border lies between a character and the white space after it. The vocabulary is searched for
tokens that span such places, and the tokenizer is asked whether it encodes both sides as it encodes
the whole.
"""

import re
import unicodedata
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from treesnake.drafters.spelling import CHARACTER_OF, METASPACE, Spelling
from treesnake.errors import InvalidInputError

SPACES = " \n\t\r"

PROBES = ("a", "Z", "1", "12", ".", "(", "'", "é", "漢", "\N{SNAKE}")
"""What the two sides of a border are tried with."""

GUARDS = ("a", "0", ".", "x")
"""What may stand in front of a piece, in the place of the text before it."""

Mark = Callable[[str], str]
"""Returns what the drafter reads for the name of a special token of the target."""


class PieceEncoder:
    """Encodes a text piece by piece, with the tokens that it has as a whole.

    Args:
        tokenizer: the drafter's.

    Raises:
        InvalidInputError: if its tokens may span any white space.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.spelling = Spelling(tokenizer)
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._added = self.spelling.added
        self._spanned = self._spanned_places(tokenizer.get_vocab())
        self._spaces, self._guard = "", ""
        self._num_guard = 0
        for guard in GUARDS:
            self._guard, self._num_guard = guard, len(self._ids(guard))
            self._spaces = "".join(filter(self._parts_here, SPACES))
            if self._spaces:
                return
        raise InvalidInputError(
            f"the tokens of {tokenizer.name_or_path or 'the drafter'} may reach over white space, "
            "so a text cannot be read in parts; choose another drafter, or draft only the tokens "
            'in common with tokens="shared"'
        )

    def border(self, text: str, num_searched: int = 0) -> int:
        """Returns where the last border is; 0 if there is none.

        Args:
            text: what may have one.
            num_searched: characters in front that have none; a border depends on the text up to it
                and on the next character.
        """
        places = range(len(text) - 1, max(num_searched, 1) - 1, -1)
        return next((place for place in places if self._is_border(text, place)), 0)

    def encode(self, text: str, *, is_first: bool) -> list[int]:
        """Returns the tokens of a piece, which is the first of its text or comes after a border."""
        if is_first:
            return self._ids(text)
        return self._ids(self._guard + text)[self._num_guard :] if text else []

    def _ids(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _is_border(self, text: str, place: int) -> bool:
        before, after = text[place - 1], text[place]
        return (
            after in self._spaces
            and unicodedata.category(before)[0] in "LNPS"
            and (before.encode()[-1:], after) not in self._spanned
            and not text.endswith(self._added, 0, place)
        )

    def _parts_here(self, space: str) -> bool:
        """Tells whether both sides of a border before this space are encoded as in one text."""
        if (self._guard.encode()[-1:], space) in self._spanned:
            return False
        return all(
            self._ids(before + space + after)
            == self._ids(before) + self.encode(space + after, is_first=False)
            for before in (self._guard, *PROBES)
            for after in (*PROBES, f" {PROBES[0]}", "")
            if (before.encode()[-1:], space) not in self._spanned
        )

    def _spanned_places(self, tokens: Iterable[str]) -> set[tuple[bytes, str]]:
        """Returns the last byte before white space, and the white space, in tokens that have both.

        Literal white space in added tokens counts as well.
        """
        if self.spelling.is_byte_level:
            written = {CHARACTER_OF[ord(space)]: space for space in SPACES}
        else:
            written = {METASPACE: " "}
        written |= {space: space for space in SPACES}
        signs = re.escape("".join(written))
        found = re.findall(rf"([^{signs}\0])([{signs}])", "\0".join([*tokens, *self._added]))
        return {(self._last_byte(before), written[space]) for before, space in {*found}}

    def _last_byte(self, character: str) -> bytes:
        of_byte = BYTE_BY_CHARACTER.get(character) if self.spelling.is_byte_level else None
        return character.encode()[-1:] if of_byte is None else of_byte


BYTE_BY_CHARACTER = {character: bytes([byte]) for byte, character in CHARACTER_OF.items()}


@dataclass(frozen=True)
class OpenPiece:
    """The end of a text, which still changes.

    Attributes:
        text: what is behind the last border.
        partial: bytes of a character that is not whole yet.
        is_first: whether the text has no border.
        is_begun: whether the text has a token.
    """

    text: str = ""
    partial: bytes = b""
    is_first: bool = True
    is_begun: bool = False


@dataclass(frozen=True, eq=False)
class PieceReader:
    """Reads the target's tokens as text, and the text as pieces.

    Attributes:
        spelling: the target's.
        encoder: the drafter's.
        mark: what the drafter reads for special tokens.
    """

    spelling: Spelling
    encoder: PieceEncoder
    mark: Mark

    def read(self, piece: OpenPiece, token_ids: Sequence[int]) -> tuple[list[int], OpenPiece]:
        """Continues a text by some of the target's tokens.

        Returns:
            The drafter's tokens that were closed by them, and the piece that is open now.
        """
        text, partial = self._continued(piece, token_ids)
        is_begun = piece.is_begun or len(token_ids) > 0
        continued = OpenPiece(text, partial, piece.is_first, is_begun)
        return self._parted(continued, len(piece.text))

    def begin(self, text: str) -> tuple[list[int], OpenPiece]:
        """Begins a text that is no text of the target's, as `read` would continue it."""
        return self._parted(OpenPiece(text, is_begun=True))

    def text(self, token_ids: Sequence[int]) -> str:
        """Returns the text of tokens, as far as its characters are whole."""
        return self._continued(OpenPiece(), token_ids)[0]

    def tokens(self, piece: OpenPiece) -> list[int]:
        """Returns the drafter's tokens of an open piece, as far as its characters are whole."""
        return self.encoder.encode(piece.text, is_first=piece.is_first)

    def _parted(self, piece: OpenPiece, num_searched: int = 0) -> tuple[list[int], OpenPiece]:
        """Returns the tokens up to the last border in a piece, and the piece behind it."""
        border = self.encoder.border(piece.text, num_searched)
        if not border:
            return [], piece
        closed = self.encoder.encode(piece.text[:border], is_first=piece.is_first)
        return closed, OpenPiece(piece.text[border:], piece.partial, is_first=False, is_begun=True)

    def _continued(self, piece: OpenPiece, token_ids: Sequence[int]) -> tuple[str, bytes]:
        decoder = getincrementaldecoder("utf-8")("replace")
        parts = [piece.text, decoder.decode(piece.partial)]
        drops_space = self.spelling.drops_first_space and not piece.is_begun
        for number, spelled in enumerate(map(self.spelling.of, token_ids)):
            if isinstance(spelled, str):
                parts.append(decoder.decode(b"", final=True))
                parts.append(self._marked(spelled, parts))
            elif drops_space and number == 0:
                parts.append(decoder.decode(spelled.removeprefix(b" ")))
            else:
                parts.append(decoder.decode(spelled))
        return "".join(parts), decoder.getstate()[0]

    def _marked(self, name: str, parts: Sequence[str]) -> str:
        """Returns what stands for a special token; line breaks do not pile up."""
        mark = self.mark(name)
        before = next((part for part in reversed(parts) if part), "")
        return "" if mark == "\n" and before.endswith("\n") else mark
