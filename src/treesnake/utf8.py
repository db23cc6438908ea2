"""The gate for text from outside: whatever can be written in UTF-8 is text, nothing else is.

Python's strings can hold halves of surrogate pairs, and bytes of the command line that are not
UTF-8. Tokenizers, files and terminals cannot. One decision holds everywhere:

- What a person can mend is refused, with the place: prompts, messages, stop strings, questions,
  recipes, documents.
- A row of a corpus is left out and counted (`treesnake.json_lines.LeftOutRows`).
- What is recorded of a run is kept, with U+FFFD in the place of what is no text.

A byte order mark in front is passed over. NUL is a character as any other.
"""

import codecs
from pathlib import Path

from treesnake.errors import InvalidInputError

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"\x1f\x8b": "compressed",
}
"""What files begin with that hold text in another form."""

MOST_SHOWN = 60
"""Characters of a text that a message shows."""


def check_text(value: object, where: str) -> str:
    """Returns the value, which is text.

    Args:
        value: what came from outside.
        where: what the value is called in messages, such as "the prompt".

    Raises:
        InvalidInputError: if it is no string, or cannot be written in UTF-8.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"{where} must be text, not {described(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{where} is no text in UTF-8: {_fault(value[error.start])} at character "
            f"{error.start + 1} of {described(value)}; write the whole character, or leave it out"
        ) from error
    return value


def is_text(value: object) -> bool:
    """Tells whether a value is a string that can be written in UTF-8."""
    return isinstance(value, str) and writable(value) == value


def decode_text(content: bytes, where: str, first_line: int = 1) -> str:
    """Returns bytes from outside as text, without a byte order mark in front.

    Args:
        content: a file, a line of one, or standard input.
        where: what it is called in messages.
        first_line: the number of its first line.

    Raises:
        InvalidInputError: naming the line, if it is not UTF-8.
    """
    if first_line == 1:
        check_form(content, where)
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise InvalidInputError(
            f"line {line} of {where} is not in UTF-8: found the byte 0x{content[error.start]:02x}; "
            "save it as plain text in UTF-8"
        ) from error


def check_form(content: bytes, where: str) -> None:
    """Checks how a file begins.

    Raises:
        InvalidInputError: if it is text in UTF-16 or UTF-32, or is compressed.
    """
    for mark, kind in MARKS.items():
        if content.startswith(mark):
            raise InvalidInputError(f"{where} is {kind}; save it as plain text in UTF-8")


def read_text_file(path: Path) -> str:
    """Returns the text of a file.

    Raises:
        InvalidInputError: if it cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    return decode_text(content, f"{path}")


def check_path(name: str, where: str) -> Path:
    """Returns the path that a name is, with the home folder for ~; nothing need be there.

    Raises:
        InvalidInputError: if the name is no text, or no system can have such a file.
    """
    check_text(name, where)
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"{where} cannot be the name of a file ({error}), got {described(name)}"
        ) from error
    return path


def writable(text: str) -> str:
    """Returns a text that can be written in UTF-8, with U+FFFD for what cannot.

    Two halves of one pair that follow each other become the character that they stand for.
    """
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def described(value: object) -> str:
    """Describes a value of JSON for a message, however large or nested it is."""
    match value:
        case None:
            return "null"
        case str():
            return repr(value[:MOST_SHOWN]) + "..." * (len(value) > MOST_SHOWN)
        case bool():
            return str(value).lower()
        case int() if abs(value) >= 1 << 64:
            return "a number of more than 64 bits"
        case int() | float():
            return str(value)
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return f"an object with {len(value)} keys"
        case _:
            return f"a value of type {type(value).__name__}"


def _fault(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"found the byte 0x{code - 0xDC00:02x}, which is of another encoding,"
    return f"found half of a surrogate pair, {character!r},"
