"""Methods by name: our own decoding with any drafter and search, and what others offer."""

from dataclasses import dataclass
from enum import StrEnum

from treesnake.drafters.load import JOIN, NO_DRAFTER
from treesnake.errors import InvalidInputError
from treesnake.search.by_name import search_by_name
from treesnake.shape import OFF

PLAIN = "plain"


class Peer(StrEnum):
    """Methods of others: of transformers, and llama.cpp on the target's own GGUF file."""

    GENERATE = "transformers"
    COMPILED = "transformers compiled"
    ASSISTED = "transformers assisted"
    PROMPT_LOOKUP = "transformers prompt lookup"
    LLAMA_CPP = "llama.cpp"


@dataclass(frozen=True)
class Method:
    """A way to decode.

    Attributes:
        name: as it was written.
        peer: the method of others, or None for our own.
        drafter: by name; None is that of the pair.
        search: of our own, by name.
    """

    name: str
    peer: Peer | None = None
    drafter: str | None = None
    search: str = str(OFF)

    @property
    def drafts(self) -> bool:
        """Whether it is our own decoding with a drafter."""
        return self.peer is None and self.drafter != NO_DRAFTER

    def drafter_for(self, pair_drafter: str) -> str:
        """Returns the name of the drafter beside a pair's own."""
        if self.drafter is None:
            return pair_drafter
        if self.drafter.startswith(JOIN):
            return pair_drafter + self.drafter
        return self.drafter


def parse_method(text: str) -> Method:
    """Reads a method.

    One of "plain"; "transformers", "transformers compiled", "transformers assisted" and
    "transformers prompt lookup"; "llama.cpp"; or a search or a shape, such as "chain(4)", with the
    pair's drafter; or "DRAFTER@SEARCH" with another. A drafter "+prompt-lookup" is the pair's
    joined with that.

    Raises:
        InvalidInputError: if there is no such search.
    """
    if text == PLAIN:
        return Method(text, drafter=NO_DRAFTER)
    if text in [*Peer]:
        return Method(text, peer=Peer(text))
    drafter, at, search = text.rpartition("@")
    if at and not drafter:
        raise InvalidInputError(f"the method {text!r} names no drafter before the @")
    search_by_name(search)
    return Method(text, drafter=drafter or None, search=search)
