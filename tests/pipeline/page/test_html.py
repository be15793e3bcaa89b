"""The HTML of the page: whole in itself, escaped, and every figure on it in report.json."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

from pipeline.page.html import _FORMATS, figure_at
from tests.support.page_runs import HOSTILE_CATEGORIES


class Elements(HTMLParser):
    """The start tags with their attributes, and the text of scripts and styles."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self.open = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open = tag

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        self.texts.setdefault(self.open, []).append(data)


def parsed(made_page) -> Elements:
    elements = Elements()
    elements.feed(made_page.html.read_text())
    return elements


def test_the_page_refers_to_nothing_outside(made_page):
    """No address of a script, style, picture, font or form leads anywhere but into the page."""
    for tag, attributes in parsed(made_page).tags:
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
            if (value := attributes.get(name)) is not None:
                assert value.startswith(("#", "data:image/")), (tag, value)
    assert not re.search(r"@import|url\((?!#)", made_page.html.read_text().split("<body>")[0])


def test_names_from_outside_make_no_element(made_page):
    elements = parsed(made_page)
    assert [tag for tag, _ in elements.tags].count("script") == 2
    assert not [attributes for _, attributes in elements.tags if any(name.startswith("on") for name in attributes)]
    assert not [attributes for tag, attributes in elements.tags if tag == "img" and attributes.get("src") == "x"]
    text = made_page.html.read_text()
    assert "<!-- broken" not in text and "<b>broken" not in text
    said = "".join(text for tag, texts in elements.texts.items() if tag != "script" for text in texts)
    assert "{{ 7 * 7 }}" in said  # Jinja has not computed
    assert all(category["name"] in said for category in HOSTILE_CATEGORIES)


def test_the_data_cannot_end_its_element(made_page):
    elements = parsed(made_page)
    [data] = [text for text in elements.texts["script"] if text.startswith("{")]
    raw = made_page.html.read_text().split('id="data">')[1].split("</script>")[0]
    assert not set(raw) & set("<>&\u2028\u2029")
    assert json.loads(data)["figures"]["run"]["run_id"] == "second"


def test_the_policy_names_the_script_and_the_style_of_the_page(made_page):
    elements = parsed(made_page)
    [policy] = [a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    html = made_page.html.read_text()
    for text in (
        re.search(r"<style>(.*?)</style>", html, re.S)[1],
        re.findall(r"<script>(.*?)</script>", html, re.S)[0],
    ):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert not [attributes for _, attributes in elements.tags if "style" in attributes]


def test_every_figure_stands_in_report_json(made_page):
    figures, found = made_page.figures, 0
    html = made_page.html.read_text()
    for value, path, kind, text in re.findall(
        r'<data class="figure" value="(.*?)" data-figure="(.*?)" data-format="(.*?)">(.*?)</data>', html
    ):
        there = figure_at(figures, path)
        assert value == ("" if there is None else str(there)), path
        assert text == ("–" if there is None else _FORMATS[kind](there)), path
        found += 1
    assert found > 60
    # No number of three digits stands in the text of the page beside them, but in names, times, keys and charts.
    body = re.sub(r"<(script|style|svg|data|code|dt|pre)\b.*?</\1>", "", html.split("<main")[1], flags=re.S)
    words = re.sub(r"<[^>]*>", " ", body)
    assert not re.findall(r"(?<![\w.:/+-])\d{3,}(?![\w.:/+-])", words)
