"""Searches by name, as the command line and `from_pretrained` take them."""

from collections.abc import Callable

from treesnake.errors import InvalidInputError
from treesnake.protocols import SharedSearch, TreeSearch
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
            f'"{name}" is none of the searches {", ".join((SELF_TUNING, *SEARCHES))}, nor can it '
            f"be one shape for all: {error}"
        ) from error


def as_search(search: object) -> SharedSearch:
    """Returns a search that texts can share, by name or as it is.

    Raises:
        InvalidInputError: if it is neither such a name nor such a search; a shape is none.
    """
    if isinstance(search, str):
        return search_by_name(search)
    is_shared = isinstance(search, SharedSearch) and not isinstance(search, type)
    if is_shared and isinstance(search.new_session(), TreeSearch):
        return search
    raise InvalidInputError(
        f"{search!r} cannot choose the trees of many texts: give the name of a search, or an "
        "object whose new_session gives one with choose and observe, such as "
        "StaticSearch(chain(3)) for one shape"
    )
