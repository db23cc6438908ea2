"""What text a token is: the bytes that it adds to a text, or the name of a special token."""

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from treesnake.detokenizing import decoder_parts

METASPACE = "\u2581"
"""How SentencePiece writes a space."""


def _byte_alphabet() -> dict[str, int]:
    """Returns the byte for each of GPT-2's 256 characters: printable Latin-1 is itself."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + rank): byte for rank, byte in enumerate(others)
    }


BYTE_OF = _byte_alphabet()

CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


def from_byte_level(token: str) -> bytes:
    """Returns what a token of GPT-2's kind spells: each of its characters stands for a byte."""
    if all(char in BYTE_OF for char in token):
        return bytes(BYTE_OF[char] for char in token)
    return token.encode()


def from_sentencepiece(token: str) -> bytes:
    """Returns what a token of SentencePiece spells; <0x0A> is a byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace(METASPACE, " ").encode()


class Spelling:
    """Spells the tokens of a tokenizer one by one.

    The spellings of the tokens of a text, joined, are the text that the tokenizer decodes, except
    for what it tidies up: the space before the first word, or spaces before punctuation.

    Args:
        tokenizer: one of the package tokenizers.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        added = tokenizer.added_tokens_decoder
        self._special = {i: token.content for i, token in added.items() if token.special}
        self._literal = {i: token.content for i, token in added.items() if not token.special}
        self._parts = {part.get("type"): part for part in decoder_parts(tokenizer)}
        self._known: dict[int, bytes | str] = {}

    @property
    def special(self) -> Mapping[int, str]:
        """The names of the special tokens."""
        return self._special

    @property
    def added(self) -> tuple[str, ...]:
        """The texts of all tokens that are found in a text before it is split."""
        return (*self._special.values(), *self._literal.values())

    @property
    def is_byte_level(self) -> bool:
        """Whether the characters of a token stand for bytes."""
        return "ByteLevel" in self._parts

    @property
    def drops_first_space(self) -> bool:
        """Whether the space before the first word of a text is not part of it."""
        return any(map(_drops_first_space, self._parts.values()))

    def of(self, token_id: int) -> bytes | str:
        """Returns the bytes of a token, or the name of a special token; none for padding."""
        if token_id not in self._known:
            self._known[token_id] = self._spell(token_id)
        return self._known[token_id]

    def token_of(self, data: bytes) -> int | None:
        """Returns the token that spells these bytes, if there is one that can be found by name."""
        if self.is_byte_level:
            name = "".join(CHARACTER_OF[byte] for byte in data)
        else:
            name = data.decode(errors="replace").replace(" ", METASPACE)
        token = self._backend.token_to_id(name)
        return token if token is not None and self.of(token) == data else None

    def num_bytes(self, token_id: int) -> int:
        """Returns how many bytes a token adds to a text."""
        spelled = self.of(token_id)
        return len(spelled) if isinstance(spelled, bytes) else 0

    def _spell(self, token_id: int) -> bytes | str:
        if token_id in self._special:
            return self._special[token_id]
        if token_id in self._literal:
            return self._literal[token_id].encode()
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self.is_byte_level:
            return from_byte_level(token)
        if "WordPiece" in self._parts:
            prefix = str(self._parts["WordPiece"].get("prefix", "##"))
            is_inside = token.startswith(prefix)
            return (token.removeprefix(prefix) if is_inside else f" {token}").encode()
        if "BPEDecoder" in self._parts:
            return token.replace(str(self._parts["BPEDecoder"].get("suffix", "</w>")), " ").encode()
        return f" {token}".encode() if None in self._parts else from_sentencepiece(token)


def _drops_first_space(part: Mapping[str, Any]) -> bool:
    match part.get("type"):
        case "Strip":
            return int(part.get("start", 0)) > 0
        case "Metaspace":
            return part.get("prepend_scheme", "always") != "never"
        case "WordPiece" | None:
            return True
        case _:
            return False
