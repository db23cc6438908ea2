"""The page, in text."""

import re

import httpx

from treesnake.serving.page import page_html


def test_the_page_needs_nothing_else_and_escapes_names(server: str) -> None:
    page = httpx.get(server).text
    assert not re.search(r"(src|href)\s*=|@import|url\(|https?://(?!www\.w3\.org)", page)
    named = page_html("</script><b>", 0.1)
    assert "</script><b>" not in named
    assert named.count("<script") == named.count("</script>") == 2
