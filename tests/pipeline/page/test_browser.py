"""The page in a real browser: no errors, galleries and filters, few nodes, keyboard, both schemes, accessibility."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.browser import open_browser, open_page
from tests.support.page_runs import TURNED

MOST_NODES = 5000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


def to_gallery(page) -> None:
    page.evaluate("document.getElementById('gallery').scrollIntoView()")
    page.wait_for_selector("#grid .pic")


def nodes(page) -> int:
    return page.evaluate("document.getElementsByTagName('*').length")


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1400, "light"),
        (390, "dark"),
        pytest.param(1400, "dark", marks=pytest.mark.thorough),
        pytest.param(390, "light", marks=pytest.mark.thorough),
    ],
)
def test_the_page_opens_without_errors_and_fits_the_width(browser, made_page, width, scheme):
    """No script of a name runs, nothing is requested, nothing is wider than the window, no text is cut in a chart."""
    with open_page(browser, made_page.html, viewport={"width": width, "height": 850}, color_scheme=scheme) as (
        page,
        bad,
    ):
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(200)
        assert bad == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert nodes(page) < MOST_NODES
        cut = page.evaluate(
            """[...document.querySelectorAll('.chart svg')].flatMap(svg => {
                const box = svg.getBoundingClientRect();
                return [...svg.querySelectorAll('text')].filter(text => {
                    const of = text.getBoundingClientRect();
                    return of.width && (of.left < box.left - 1 || of.right > box.right + 1);
                }).map(text => text.textContent);
            })"""
        )
        assert cut == []


def test_a_class_opens_its_gallery_from_the_chart_and_from_the_table(browser, made_page):
    figures = made_page.figures
    with open_page(browser, made_page.html) as (page, bad):
        for link in (page.locator(".chart a").first, page.locator("#class-table a").nth(1)):
            category = int(link.get_attribute("href").removeprefix("#class="))
            link.focus()
            page.keyboard.press("Enter")
            wanted = [
                one for one in figures["gallery"]["images"] if any(drawn["c"] == category for drawn in one["drawn"])
            ]
            page.locator("#found", has_text=f"{len(wanted)} images with").wait_for()
            assert page.evaluate("document.getElementById('gallery').getBoundingClientRect().top") < 200
        assert bad == []


def test_sorting_searching_and_side_by_side(browser, made_page):
    gallery = made_page.figures["gallery"]["images"]
    with open_page(browser, made_page.html) as (page, bad):
        to_gallery(page)
        first = page.locator("#grid .pic").first
        page.select_option("#sort", "score")
        lowest = min(one["min_score"] for one in gallery if one["min_score"] is not None)
        assert f"lowest {lowest:.2f}" in first.get_attribute("aria-label")
        page.select_option("#sort", "segments")
        assert f"{max(one['segments'] for one in gallery)} ·" in first.get_attribute("aria-label")
        page.select_option("#sort", "change")
        page.check("#beside")
        assert page.locator("#grid .pic").first.locator(".tag").all_inner_texts() == ["before", "now"]
        page.fill("#search", "turned")
        assert page.locator("#grid .pic").count() == 1
        page.fill("#search", "no such name")
        assert page.locator("#found").inner_text().startswith("No image")
        assert bad == []


def pixels_of(page, selector: str) -> np.ndarray:
    """The pixels of an element, once its pictures are decoded and drawn: a click may have made them anew."""
    page.evaluate(
        """async selector => {
            const images = document.querySelector(selector).querySelectorAll("img");
            await Promise.all([...images].map(one => one.decode()));
            await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
        }""",
        selector,
    )
    return np.asarray(Image.open(io.BytesIO(page.locator(selector).first.screenshot())).convert("RGB")).astype(int)


def test_pictures_are_upright_and_masks_lie_on_them(browser, made_page):
    """The photograph that EXIF turns is red at the top; masks change with opacity and with the switches of classes."""
    with open_page(browser, made_page.html) as (page, bad):
        to_gallery(page)
        page.fill("#search", TURNED)
        page.evaluate("document.querySelector('#grid .pic').scrollIntoView({block: 'center'})")
        page.evaluate("document.querySelector('#grid img').decode()")
        masked = pixels_of(page, "#grid .pic")
        page.evaluate("opacity.value = 0; opacity.dispatchEvent(new Event('input'))")
        page.uncheck("#outlines")
        bare = pixels_of(page, "#grid .pic")
        height, width = bare.shape[:2]
        assert height > width
        top, bottom = (bare[row, width // 2] for row in (height // 4, 3 * height // 4))
        assert top[0] > 180 > 90 > top[2] and bottom[2] > 180 > 90 > bottom[0]
        assert np.abs(masked - bare).mean() > 10
        page.evaluate("opacity.value = 100; opacity.dispatchEvent(new Event('input'))")
        page.locator(".switches summary").click()
        page.wait_for_selector("#switches input")  # made when the browser says that the list is open
        for box in page.locator("#switches input").all():
            box.uncheck()
        assert np.abs(pixels_of(page, "#grid .pic") - bare).mean() < 1
        assert bad == []


def test_the_masks_of_the_script_are_those_of_pycocotools(browser, made_page):
    """The decoder of the page, for every mask of the gallery."""
    import json

    from pycocotools import mask as coco

    data = json.loads(made_page.html.read_text().split('id="data">')[1].split("</script>")[0])
    with open_page(browser, made_page.html) as (page, _):
        for image in data["images"]:
            size = [image["h"], image["w"]]
            for segment in image["now"][:2]:
                inside = page.evaluate(  # as a text: a list is sent number by number
                    "([w, h, m]) => Array.from(owners(w, h, [{ m }], () => true), owner => owner ? '0' : '1').join('')",
                    [image["w"], image["h"], segment["m"]],
                )
                wanted = coco.decode({"size": size, "counts": segment["m"]}).astype(bool)
                assert np.array_equal(np.array(list(inside)).reshape(size) == "1", wanted)


def test_an_image_opens_large_and_the_keyboard_leads_on(browser, made_page):
    with open_page(browser, made_page.html) as (page, bad):
        to_gallery(page)
        page.locator("#grid .pic").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#large[open]")
        title = page.locator("#large-title").inner_text()
        page.keyboard.press("ArrowRight")
        assert page.locator("#large-title").inner_text() != title
        page.keyboard.press("ArrowLeft")
        assert page.locator("#large-title").inner_text() == title
        assert page.locator("#views canvas").count() == 2  # before and now
        page.keyboard.press("Escape")
        assert page.locator("#large[open]").count() == 0 and bad == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_violation_of_accessibility(browser, made_page, scheme):
    """axe-core, contrast of text included, of the page and of the dialog."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with open_page(browser, made_page.html, color_scheme=scheme, bypass_csp=True) as (page, _):
        for opened in (False, True):
            to_gallery(page)
            if opened:
                page.locator("#grid .pic").first.click()
            found = axe.Axe().run(page).response["violations"]
            serious = [
                (one["id"], [node["html"][:200] for node in one["nodes"][:3]])
                for one in found
                if one["impact"] in ("serious", "critical")
            ]
            assert serious == []
