"""The page, in text."""

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from treesnake import SpeculativeDecoder
from treesnake.serving.engine import EngineLimits
from treesnake.serving.page import page_html
from treesnake.testing.browser import CHROMIUM, browser_page


def test_the_page_needs_nothing_else_and_escapes_names(server: str) -> None:
    page = httpx.get(server).text
    assert not re.search(r"(src|href)\s*=|@import|url\(|https?://(?!www\.w3\.org)", page)
    named = page_html("</script><b>", 0.1)
    assert "</script><b>" not in named
    assert named.count("<script") == named.count("</script>") == 2


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page with")
def test_a_browser_shows_who_wrote_what_and_the_latest_tree(
    start_server: Callable[..., str], decoder: SpeculativeDecoder, tmp_path: Path
) -> None:
    length = len(decoder.encode([{"role": "user", "content": "draft <b>"}])) + 12
    server = start_server(limits=EngineLimits(max_model_len=length))
    with browser_page(f"{server}/?ask=draft+%3Cb%3E", tmp_path) as page:
        page.wait_until("document.querySelectorAll('[data-step]').length === 12")
        drawn = page.html
        assert page.picture().startswith(b"\x89PNG")
    log = drawn[drawn.index('id="log"') : drawn.index('id="form"')]
    assert '<p class="asked">draft &lt;b&gt;</p>' in log
    assert 'class="failed"' not in log
    assert log.count("data-step=") == 12
    assert log.count("by-drafter") > 0
    tree = drawn[drawn.index('id="tree"') : drawn.index('id="caption"')]
    assert tree.count("<g ") > 1
    assert re.search(r'id="per-step">[\d.]+<', drawn)
