"""Drafters by name."""

from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.protocols import DrafterModel

PROMPT_LOOKUP = "prompt-lookup"
NO_DRAFTER = "none"


def load_drafter(name: str) -> DrafterModel:
    """Returns a drafter.

    Args:
        name: "prompt-lookup", or "none", which never drafts anything.

    Raises:
        InvalidInputError: if there is no such drafter.
    """
    if name == PROMPT_LOOKUP:
        return NgramDrafterModel()
    if name == NO_DRAFTER:
        return NoDrafterModel()
    raise InvalidInputError(f"there is no drafter {name!r}; choose {PROMPT_LOOKUP} or {NO_DRAFTER}")
