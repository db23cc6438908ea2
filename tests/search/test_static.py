"""The search that does not search."""

import pytest

from treesnake.protocols import SharedSearch, TreeSearch
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, BestFirst, LevelWidths, Shape


@pytest.mark.parametrize("shape", [OFF, LevelWidths((3, 2)), BestFirst(2, 3, 4)])
def test_a_static_search_always_chooses_its_shape(shape: Shape) -> None:
    search = StaticSearch(shape)
    assert isinstance(search, SharedSearch)
    assert isinstance(search, TreeSearch)
    assert search.new_session() is search
    assert search.choose(1) == search.choose(1000) == shape
