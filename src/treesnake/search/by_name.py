"""Searches by name, as the command line and `from_pretrained` take them."""

from collections.abc import Callable

from treesnake.errors import InvalidInputError
from treesnake.protocols import SharedSearch
from treesnake.search.costs import CostTable
from treesnake.search.moving_average import MovingAverageSearch
from treesnake.search.self_tuning import SelfTuningSearch
from treesnake.search.static import StaticSearch
from treesnake.search.thompson import ThompsonSearch
from treesnake.search.trial import TrialSearch
from treesnake.search.ucb import DiscountedUcbSearch, UcbSearch
from treesnake.shape import parse_shape

SELF_TUNING = "self-tuning"

SEARCHES: dict[str, Callable[[], SharedSearch]] = {
    "ucb": UcbSearch,
    "discounted-ucb": DiscountedUcbSearch,
    "thompson": ThompsonSearch,
    "moving-average": MovingAverageSearch,
    "trial": TrialSearch,
}
"""Those that need to know nothing beforehand."""


def search_by_name(name: str, costs: CostTable | None = None) -> SharedSearch:
    """Returns a search, or the one that always has the shape that is named.

    Args:
        name: "self-tuning", "ucb", "discounted-ucb", "thompson", "moving-average", "trial", or a
            shape such as "chain(4)", "3x2x2" or "off".
        costs: what was measured of the pair; the self-tuning search begins with it.

    Raises:
        InvalidInputError: if it is neither.
    """
    if name == SELF_TUNING:
        return SelfTuningSearch(costs)
    if name in SEARCHES:
        return SEARCHES[name]()
    try:
        return StaticSearch(parse_shape(name))
    except InvalidInputError as error:
        raise InvalidInputError(
            f'"{name}" is no search and no shape of a tree; write '
            f"{', '.join((SELF_TUNING, *SEARCHES))}, or chain(4), 3x2x2x1, best_first(4, 6, 24) or "
            "off"
        ) from error
