"""Pages of runs that have little: no image, no segment, nothing before, rows that left the tables, a large gallery."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs.report import main
from pipeline.page.publish import publish_page
from pipeline.page.settings import ReportSettings
from tests.support.browser import open_browser
from tests.support.evaluation_runs import MadeImage, Segment
from tests.support.page_runs import drawn_images, page_run

SCROLLED = "top => new Promise(done => { scrollTo(0, top); requestAnimationFrame(() => setTimeout(done)); })"
NODES = "document.getElementsByTagName('*').length"


def page_of(root: Path, **settings) -> dict:
    """The figures of the page of the last run."""
    html = Path(publish_page(ReportSettings(f"{root}/tables", **settings)).address)
    return json.loads((html.parent / "report.json").read_text())


def test_a_run_without_segments_and_without_images_with_results(tmp_path):
    images = [MadeImage("a.png", (4, 4), (), ()), MadeImage("b.png", (4, 4), (), None), MadeImage("c.png", (4, 4))]
    page_run(tmp_path, tmp_path, images, "empty", 27)
    figures = page_of(tmp_path)
    assert figures["totals"]["segments"] == 0 and figures["totals"]["mean_score"] is None and figures["classes"] == []
    page_run(tmp_path, tmp_path, images[1:2], "failed", 28)
    figures = page_of(tmp_path)
    assert figures["totals"]["ok"] == 0 and figures["totals"]["segments_per_image"] is None
    assert figures["against"]["images_in_both"] == 0 and figures["gallery"]["images"] == []


def test_an_instance_run_with_overlaps_and_more_segments_than_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for number in range(130):
        mask_HW = np.zeros((40, 50), bool)
        top, left = rng.integers(0, 30, 2)
        mask_HW[top : top + 10, left : left + 12] = True
        found.append(Segment(mask_HW, 7, (number + 1) / 200))
    page_run(tmp_path, tmp_path, [MadeImage("a.png", (40, 50), (), found)], "many", 28, results={"task": "instance"})
    [image] = page_of(tmp_path)["gallery"]["images"]
    assert image["segments"] == 130 and len(image["drawn"]) == 100
    assert min(one["s"] for one in image["drawn"]) == pytest.approx(31 / 200)  # the best are drawn


def test_runs_of_another_task_are_no_run_before(tmp_path):
    images = drawn_images(tmp_path / "images", number=1)
    page_run(tmp_path, tmp_path / "images", images, "semantic", 26, results={"task": "semantic"})
    page_run(tmp_path, tmp_path / "images", images, "night", 27)
    assert page_of(tmp_path)["against"] is None
    with pytest.raises(SystemExit):
        main(["--tables", f"{tmp_path}/tables", "--against", "semantic"])


def test_other_tables_and_other_settings(tmp_path):
    images = drawn_images(tmp_path / "images", number=2)
    for name, threshold in (("one", 0.5), ("two", 0.8)):
        results = {"task": "panoptic", "score_threshold": threshold}
        page_run(tmp_path / name, tmp_path / "images", images, name, 27, results=results, fingerprint=f"{name:0<16}")
    against = page_of(tmp_path / "two", against="one", against_tables=f"{tmp_path}/one/tables")["against"]
    assert against["other_settings"] == [{"name": "score_threshold", "now": 0.8, "before": 0.5}]
    assert not against["same_fingerprint"] and against["images_changed"] == 0


def test_a_gallery_of_hundreds_stays_small_while_it_scrolls(tmp_path):
    """Below 5,000 nodes at every place, and a picture in each part of the window that has one."""
    folder = tmp_path / "images"
    images = drawn_images(folder, number=1)
    names = [f"copy-{number:03d}.png" for number in range(300)]
    for name in names:
        shutil.copy(folder / "plain-000.png", folder / name)
    [plain] = [image for image in images if image.name == "plain-000.png"]
    page_run(tmp_path, folder, [MadeImage(name, plain.size, (), plain.found) for name in names], "night", 28)
    html = publish_page(ReportSettings(f"{tmp_path}/tables", sample=300)).address
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"file://{html}")
        page.wait_for_selector("#strip .pic")
        height = page.evaluate("document.documentElement.scrollHeight")
        top = page.evaluate("document.getElementById('grid').getBoundingClientRect().top")
        seen = set()
        for place in range(int(top), height - 900, 700):
            page.evaluate(SCROLLED, place)
            assert page.evaluate(NODES) < 5000
            assert page.evaluate("document.elementFromPoint(300, 450).closest('.row, #grid, section') !== null")
            seen |= set(page.locator("#grid .cap b").all_inner_texts())
        assert seen == set(names)
