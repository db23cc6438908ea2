"""Searches by their names."""

import pytest

from treesnake.errors import InvalidInputError
from treesnake.protocols import SharedSearch, TreeSearch
from treesnake.search.by_name import SEARCHES, SELF_TUNING, search_by_name
from treesnake.search.costs import CostTable
from treesnake.search.self_tuning import SelfTuningSearch
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, chain


@pytest.mark.parametrize("name", [SELF_TUNING, *SEARCHES])
def test_every_name_is_that_of_a_search(name: str) -> None:
    search = search_by_name(name)
    assert isinstance(search, SharedSearch)
    assert isinstance(search.new_session(), TreeSearch)
    assert search is not search_by_name(name)
    assert not isinstance(search, StaticSearch)


def test_a_shape_is_a_search_that_always_has_it() -> None:
    assert search_by_name("chain(4)") == StaticSearch(chain(4))
    assert search_by_name("off").new_session().choose(10) == OFF


def test_the_self_tuning_search_begins_with_the_costs() -> None:
    costs = CostTable({64: {1: 1.0}}, {})
    search = search_by_name(SELF_TUNING, costs)
    assert isinstance(search, SelfTuningSearch)
    assert search.costs is costs


def test_other_names_are_refused_with_those_that_exist() -> None:
    with pytest.raises(InvalidInputError, match=r"self-tuning, ucb.*best_first"):
        search_by_name("magic")
