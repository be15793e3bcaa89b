"""What the policy in the page holds back, should anything slip through the escaping; and pictures beside the page."""

import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.page.publish import publish_page
from pipeline.page.settings import ReportSettings
from tests.support.browser import open_browser

INJECTED = """
<script>document.title = "ran: script"</script>
<img src="x" onerror="document.title = 'ran: handler'">
<img id="outside" src="file://{folder}/outside.png">
<base href="file:///elsewhere/">
<style>h1 {{ position: fixed }}</style>
<a id="link" href="javascript:document.title = 'ran: link'">link</a>
<form id="form" action="http://localhost:9/stolen"><input name="a" value="b"></form>
<iframe src="data:text/html,<script>parent.document.title = 'ran: frame'</script>"></iframe>
<svg><script>document.title = "ran: svg"</script></svg>
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


def policy_of(page: str) -> dict[str, str]:
    text = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    return dict(part.strip().split(" ", 1) for part in text.split(";"))


def test_markup_that_slipped_through_does_nothing(browser, made_page, tmp_path):
    """Neither scripts, handlers and links nor frames, forms, styles and pictures from elsewhere."""
    shutil.copy(made_page.root / "images" / "plain-000.png", tmp_path / "outside.png")
    spoilt = made_page.html.read_text().replace("<main ", f"{INJECTED.format(folder=tmp_path)}<main ", 1)
    (tmp_path / "report.html").write_text(spoilt)
    page, requests = browser.new_page(), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"file://{tmp_path}/report.html")
    page.wait_for_selector("#strip .pic")  # the page's own script runs
    page.evaluate("document.getElementById('link').click()")
    page.evaluate("document.getElementById('form').submit()")
    page.wait_for_timeout(300)
    assert page.evaluate("document.title") == "Run second"
    assert page.evaluate("document.baseURI").endswith("/report.html")
    assert page.evaluate("document.getElementById('outside').naturalWidth") == 0
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).position") == "static"
    assert not [url for url in requests if url.startswith("http")] and page.url.endswith("/report.html")
    page.close()


def test_the_policy_allows_no_more_than_the_page_needs(made_page, tmp_path):
    policy = policy_of(made_page.html.read_text())
    assert {name: value for name, value in policy.items() if name not in ("script-src", "style-src")} == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    beside = publish_page(ReportSettings(made_page.tables, to=str(tmp_path), images="folder")).address
    assert policy_of(Path(beside).read_text())["img-src"] == "data: 'self' file:"


def test_pictures_beside_the_page_are_shown(browser, made_page, tmp_path):
    beside = publish_page(ReportSettings(made_page.tables, to=str(tmp_path), images="folder")).address
    page = browser.new_page()
    page.goto(f"file://{beside}")
    page.wait_for_selector("#strip .pic img")
    page.wait_for_function("[...document.querySelectorAll('#strip img')].every(one => one.complete)")
    widths = page.evaluate("[...document.querySelectorAll('#strip img')].map(one => one.naturalWidth)")
    assert widths and all(widths)
    page.close()
