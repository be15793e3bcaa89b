"""Pages of runs that have little: no image, no segment, nothing before, rows that left the tables, a large gallery."""

import json
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from jobs.report import main
from pipeline.evaluate.evaluate import evaluate
from pipeline.evaluate.settings import EvaluationSettings
from pipeline.inputs import reads
from pipeline.page.publish import publish_page
from pipeline.page.settings import ReportSettings
from tests.support.browser import open_browser, open_page
from tests.support.evaluation_runs import MadeImage, Place, Segment, coco_instances, write_panoptic
from tests.support.page_runs import HOSTILE_CATEGORIES, drawn_images, page_run

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


def test_an_image_that_is_gone_is_no_image_of_the_run(tmp_path):
    """Rows with the status `removed`: in no figure but their own, nor in the bytes that were read."""
    images = [
        MadeImage("a.png", (4, 4), (), ()),
        MadeImage("b.png", (4, 4), (), None),
        *(MadeImage(f"gone-{n}.png", (4, 4), (), None, removed=True) for n in range(5)),
    ]
    page_run(tmp_path, tmp_path, images, "night", 28)
    figures = page_of(tmp_path)
    totals = figures["totals"]
    assert [totals[name] for name in ("images", "ok", "failed", "removed")] == [2, 1, 1, 5]
    assert totals["ok_share"] == 0.5 and totals["bytes"] == 2  # each row of the test has one byte
    steps = {one["name"]: one["images"] for one in figures["funnel"]}
    assert steps == {
        "listed": 7,
        "unchanged": 5,
        "in this run": 2,
        "decode_failed": 1,
        "ok": 1,
        "gone from the input": 5,
    }
    points = figures["speed"]["over_time"]
    times = [datetime.fromisoformat(one["time"]).timestamp() for one in points]
    done = sum(one["images_per_second"] for one in points) * (times[1] - times[0])
    assert done == pytest.approx(2, rel=1e-2)


def test_a_store_that_fails_for_a_moment_costs_no_picture(tmp_path, monkeypatch, no_pauses):
    page_run(tmp_path, tmp_path / "images", drawn_images(tmp_path / "images", number=1), "night", 27)
    whole, failed = reads.read_verified, set()

    def read_verified(filesystem, path, *rest):
        if path not in failed:
            failed.add(path)
            raise OSError("503 Slow Down")
        return whole(filesystem, path, *rest)

    monkeypatch.setattr(reads, "read_verified", read_verified)
    shown = page_of(tmp_path)["gallery"]["images"]
    assert len(failed) == len(shown) > 1 and {image["missing"] for image in shown} == {None}


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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_ground_truth_scores_the_run_and_each_image(tmp_path):
    """PQ and mIoU are those of evaluate.py; an image that is all wrong comes first, one that is right has PQ 1."""
    folder = tmp_path / "images"
    images = [replace(image, truth=image.found) for image in drawn_images(folder, number=6)]
    plain = [image for image in images if image.name.startswith("plain")]
    other = {7: 3, 3: 7, 92: 40, 40: 92}
    swapped = [replace(one, category_id=other[one.category_id]) for one in plain[0].found]
    found = [replace(plain[0], found=swapped), *plain[1:]]
    page_run(tmp_path, folder, found, "night", 28)
    truth = write_panoptic(Place(str(tmp_path), HOSTILE_CATEGORIES), plain)
    figures = page_of(tmp_path, panoptic_gt=truth)
    scored = evaluate(EvaluationSettings(f"{tmp_path}/tables", panoptic_gt=truth))
    assert figures["truth"]["panoptic"]["all"] == scored["panoptic"]["all"]
    assert figures["truth"]["panoptic"]["mIoU"] == scored["semantic"]["mIoU"]
    by_name = {Path(one["image_key"]).name: one for one in figures["gallery"]["images"]}
    assert {name: one["pq"] for name, one in by_name.items()} == {
        image.name: 0.0 if image is plain[0] else 1.0 for image in plain
    }
    assert figures["gallery"]["images"][0]["image_key"].endswith(plain[0].name)
    pixels = {(true, wrong): n for true, wrong, n in by_name[plain[0].name]["mistaken"]}
    for segment_id in {one.category_id for one in plain[0].found}:
        area = sum(one.area for one in plain[0].found if one.category_id == segment_id)
        assert pixels[segment_id, other[segment_id]] == area
    shares = {(one["true_id"], one["found_id"]): one["share"] for one in figures["truth"]["panoptic"]["matrix"]}
    for true in other:
        assert sum(share for (of, _), share in shares.items() if of == true) == pytest.approx(1)
    assert main(["--tables", f"{tmp_path}/tables", "--panoptic-gt", truth]) == 0
    with (
        open_browser() as browser,
        open_page(browser, f"{tmp_path}/tables/_runs/night/page/report.html") as (page, bad),
    ):
        cell = page.locator("#truth .chart a[href^='#cell=']").first
        cell.focus()
        page.keyboard.press("Enter")
        page.locator("#found", has_text="1 images in which").wait_for()
        page.locator("[data-sort=quality]").click()
        assert bad == []


@pytest.mark.thorough
@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_ground_truth_of_instances_scores_the_run_and_each_image(tmp_path, task):
    """AP is that of evaluate.py; an image whose classes are wrong comes first. Of a panoptic run, things count."""
    folder = tmp_path / "images"
    drawn = [image for image in drawn_images(folder, number=6) if image.name.startswith("plain")]
    things = {7: 3, 3: 7}
    plain = [replace(image, truth=[one for one in image.found if one.category_id in things]) for image in drawn]
    swapped = [replace(one, category_id=things.get(one.category_id, one.category_id)) for one in plain[0].found]
    page_run(tmp_path, folder, [replace(plain[0], found=swapped), *plain[1:]], "night", 28, results={"task": task})
    truth = tmp_path / "instances.json"
    truth.write_text(json.dumps(coco_instances(plain, HOSTILE_CATEGORIES)))
    figures = page_of(tmp_path, instances_gt=str(truth))
    scored = evaluate(EvaluationSettings(f"{tmp_path}/tables", instances_gt=str(truth)))
    instances = figures["truth"]["instances"]
    assert figures["truth"]["panoptic"] is None
    for kind, name in (("segm", "masks"), ("bbox", "boxes")):
        assert instances[name].items() <= scored[kind].items() and 0 < instances[name]["AP"] < 1
    by_class = {one["category_id"]: one for one in instances["classes"]}
    for one in scored["segm"]["per_class"]:
        assert one["AP"] == (by_class[one["category_id"]]["AP"] if one["category_id"] in by_class else None)
    assert [one["AP"] for one in instances["classes"]] == sorted(one["AP"] for one in instances["classes"])
    gallery = figures["gallery"]["images"]
    assert gallery[0]["image_key"].endswith(plain[0].name) and gallery[0]["ap"] == 0.0
    assert {one["ap"] for one in gallery[1:]} <= {1.0, None} and 1.0 in {one["ap"] for one in gallery[1:]}
    with (
        open_browser() as browser,
        open_page(browser, f"{tmp_path}/tables/_runs/night/page/report.html") as (page, bad),
    ):
        page.locator("[data-sort=quality]").click()
        page.wait_for_selector("#grid .pic")
        assert "AP 0 %" in page.locator("#grid .pic").first.get_attribute("aria-label").replace("0.0", "0")
        assert bad == []
