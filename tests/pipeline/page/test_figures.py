"""The figures of the page against pandas over the parts, pycocotools over the masks and SciPy's bootstrap."""

import json

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from pycocotools import mask as coco
from scipy.stats import bootstrap as scipy_bootstrap

from pipeline.page.figures.comparison import bootstrap
from tests.support.tables import read_table


def table(made_page, name: str, run_id: str = "second") -> pd.DataFrame:
    return ds.dataset(f"{made_page.tables}/{name}/run={run_id}").to_table().to_pandas()


def test_the_totals_and_classes_are_those_of_pandas(made_page):
    images, segments = table(made_page, "images"), table(made_page, "segments")
    ok = images[images.status == "ok"]
    pixels = int((ok.height.astype("int64") * ok.width.astype("int64")).sum())
    totals = made_page.figures["totals"]
    assert totals["images"] == len(images) and totals["ok"] == len(ok) and totals["failed"] == 1
    assert totals["segments"] == len(segments) and totals["pixels"] == pixels
    assert totals["segments_per_image"] == pytest.approx(len(segments) / len(ok))
    assert totals["images_without_segments"] == int((ok.num_segments == 0).sum())
    assert totals["pixel_share_in_segments"] == pytest.approx(segments.area.sum() / pixels)
    assert totals["mean_score"] == pytest.approx(segments.score.mean())
    found = {one["category_id"]: one for one in made_page.figures["classes"]}
    assert set(found) == set(segments.category_id)
    for category, rows in segments.groupby("category_id"):
        one = found[category]
        assert one["segments"] == len(rows) and one["images"] == rows.image_key.nunique()
        assert one["pixels"] == rows.area.sum() and one["pixel_share"] == pytest.approx(rows.area.sum() / pixels)
        assert one["mean_score"] == pytest.approx(rows.score.mean())


def test_the_histograms_hold_each_segment_once(made_page):
    segments, figures = table(made_page, "segments"), made_page.figures
    for name, values in (("scores", segments.score), ("areas", segments.area)):
        bins = figures[name]
        assert sum(one["segments"] for one in bins) == len(segments)
        for one in bins:
            inside = (values >= one["from"]) & (values < one["to"]) & (segments.isthing == one["isthing"])
            assert one["segments"] == inside.sum()


def test_the_funnel_adds_up(made_page):
    steps = {one["name"]: one["images"] for one in made_page.figures["funnel"]}
    num_images = len(made_page.now) + 1
    assert steps == {
        "listed": num_images + 5,
        "unchanged": 5,
        "in this run": num_images,
        "decode_failed": 1,
        "ok": num_images - 1,
    }


def test_the_speed_over_time_holds_all_images(made_page):
    points = made_page.figures["speed"]["over_time"]
    times = pd.to_datetime([one["time"] for one in points])
    seconds = (times[-1] - times[0]).total_seconds() / (len(times) - 1)  # times are in whole milliseconds
    done = sum(one["images_per_second"] for one in points) * seconds
    assert done == pytest.approx(len(made_page.now) + 1, rel=1e-3)


def labels(rows, size) -> np.ndarray:
    """The category of each pixel by pycocotools, -1 where no segment is."""
    found = np.full(size, -1)
    for row in rows:
        found[coco.decode(row["segmentation"]).astype(bool)] = row["category_id"]
    return found


def test_the_change_of_an_image_is_that_of_its_pixels(made_page):
    """The share told by areas is at most the share of pixels that differ; small images are drawn at full size."""
    now, before = (
        {key: list(rows) for key, rows in _by_image(read_table(made_page.root / "tables", "segments", run)).items()}
        for run in ("second", "first")
    )
    described = made_page.figures["gallery"]["images"]
    assert len(described) == len(made_page.now)
    for one in described:
        key, size = one["image_key"], (one["height"], one["width"])
        if "\\u" in key:  # shown with its active characters as escapes
            continue
        differing = (labels(now.get(key, ()), size) != labels(before.get(key, ()), size)).mean()
        assert one["differing"] == pytest.approx(differing)
        assert one["change"] <= differing + 1e-9


def _by_image(rows):
    found: dict[str, list] = {}
    for row in rows:
        found.setdefault(row["image_key"], []).append(row)
    return found


def test_the_changes_of_classes_are_those_of_pandas(made_page):
    against = made_page.figures["against"]
    assert against["run_id"] == "first" and against["paired"] and against["images_in_both"] == len(made_page.now)
    pixels = table(made_page, "images").query("status == 'ok'").eval("height * width").astype("int64").sum()
    now, before = (table(made_page, "segments", run).groupby("category_id").area.sum() for run in ("second", "first"))
    for one in against["classes"]:
        shares = [areas.get(one["category_id"], 0) / pixels for areas in (now, before)]
        assert [one["share"], one["share_before"]] == pytest.approx(shares)
        assert one["low"] <= one["change"] <= one["high"]


@pytest.mark.parametrize("paired", [True, False])
def test_the_intervals_are_those_of_scipy(paired):
    """Percentile intervals of a ratio of sums; two bootstraps of a thousand resamples differ by chance."""
    rng = np.random.default_rng(0)
    all_G = rng.uniform(1e5, 3e5, 300)
    now, before = (np.floor(all_G * rng.beta(2, 8, 300)) for _ in range(2))
    ours = bootstrap((now[:, None], all_G), (before[:, None], all_G), paired)

    def change(a, b, c, d, axis=-1):
        return a.sum(axis) / c.sum(axis) - b.sum(axis) / d.sum(axis)

    if paired:
        theirs = scipy_bootstrap(
            (now, before, all_G, all_G), change, paired=True, method="percentile", n_resamples=4000, rng=1
        ).confidence_interval
    else:
        index = np.arange(300)

        def of_indices(i, j, axis=-1):
            return change(now[i], before[j], all_G[i], all_G[j], axis)

        theirs = scipy_bootstrap(
            (index, index), of_indices, method="percentile", n_resamples=4000, rng=1
        ).confidence_interval
    width = theirs.high - theirs.low
    assert ours["low"][0] == pytest.approx(theirs.low, abs=0.12 * width)
    assert ours["high"][0] == pytest.approx(theirs.high, abs=0.12 * width)
    assert ours["change"][0] == pytest.approx(change(now, before, all_G, all_G))


def test_the_gallery_is_the_same_each_time_and_names_the_hardest_first(made_page):
    segments = table(made_page, "segments")
    lowest = segments.groupby("image_key").score.min().sort_values()
    described = {one["image_key"]: one for one in made_page.figures["gallery"]["images"]}
    assert "lowest score" in described[lowest.index[0]]["why"]
    assert described[lowest.index[0]]["min_score"] == pytest.approx(lowest.iloc[0])


def test_each_query_runs_alone(made_page):
    """That for Polars as it stands: it names a class that occurs. Those for DuckDB load what they need."""
    queries = {one["title"]: one["text"] for one in made_page.figures["queries"]}
    [polars] = [text for title, text in queries.items() if title.startswith("Polars")]
    setting, _, query = polars.replace("10_000", "100").partition("segments.filter")
    names: dict = {}
    exec(setting, names)
    found = eval(f"segments.filter{query}", names)
    segments, largest = table(made_page, "segments"), made_page.figures["classes"][0]["category_id"]
    assert len(found) == ((segments.category_id == largest) & (segments.area > 100)).sum() > 0
    others = [text for title, text in queries.items() if title.startswith("DuckDB")]
    assert len(others) == 3 and all(text.startswith("INSTALL delta; LOAD delta;\n") for text in others)


def test_report_json_is_plain_json_without_pictures(made_page):
    text = (made_page.html.parent / "report.json").read_text()
    assert "data:image" not in text and json.loads(text)["run"]["run_id"] == "second"
