"""A run that is compared with a much larger one reads a part of the larger run, and finds the images of both."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.page.figures import other_rows, tallies
from pipeline.page.figures.other_rows import _near
from pipeline.page.publish import publish_page
from pipeline.page.settings import ReportSettings
from pipeline.tables import run_rows
from pipeline.tables.run_rows import Part
from pipeline.tables.spill_database import ScratchDatabase
from tests.support.evaluation_runs import MadeImage
from tests.support.page_runs import drawn_images, page_run, worsened

MOST = 18  # images that are read


@pytest.fixture
def read_shards(monkeypatch) -> list[int]:
    """The shards of the run before whose parts of `images` are read, where at most MOST images may be."""
    monkeypatch.setattr(other_rows, "_ALWAYS", MOST)
    read, stream = [], run_rows.stream_files

    def noting(output, table, snapshot, columns, below=(), among=None):
        if table == "images":
            read.extend(path for path in among if path.startswith("run=before/"))
        return stream(output, table, snapshot, columns, below, among)

    monkeypatch.setattr(run_rows, "stream_files", noting)
    return read


def runs(root: Path, now: list[MadeImage], before: list[MadeImage]) -> dict:
    """What the page says against a run of `before`, three images to a shard."""
    folder = root / "images"
    page_run(root, folder, before, "before", 27)
    page_run(root, folder, now, "now", 28)
    html = Path(publish_page(ReportSettings(f"{root}/tables")).address)
    return json.loads((html.parent / "report.json").read_text())["against"]


def named(images: list[MadeImage], number: int, prefix: str) -> list[MadeImage]:
    return [replace(images[n % len(images)], name=f"{prefix}-{n:04d}.png") for n in range(number)]


def test_images_of_both_runs_are_found_where_their_keys_lie(tmp_path, read_shards):
    drawn = drawn_images(tmp_path / "drawn", number=0)
    before = named(drawn, 120, "night")
    now = worsened(np.random.default_rng(0), before[60:66])
    against = runs(tmp_path, now, before)
    assert len(read_shards) == 2  # of 40
    assert against["sampled"] == {"images": 6, "of_images": 120, "shared": True}
    assert against["images_in_both"] == 6 and against["paired"] and against["images_before"] == 120
    whole = runs(tmp_path / "whole", now, before[60:66])
    assert whole["sampled"] is None
    for one, other in zip(whole["classes"], against["classes"], strict=True):
        assert [one["share"], one["share_before"]] == [other["share"], other["share_before"]]


def test_of_images_all_over_a_larger_run_some_are_compared(tmp_path, read_shards):
    before = named(drawn_images(tmp_path / "drawn", number=0), 120, "night")
    against = runs(tmp_path, before[::14], before)
    assert len(read_shards) <= MOST // 3
    assert against["sampled"]["shared"] and against["paired"] and 0 < against["images_in_both"] < 9


def test_a_run_of_other_images_is_a_random_sample(tmp_path, read_shards):
    drawn = drawn_images(tmp_path / "drawn", number=0)
    now, before = named(drawn, 5, "zulu"), named(drawn, 120, "night")
    against = runs(tmp_path, now, before)
    assert len(read_shards) == MOST // 3
    assert against["sampled"] == {"images": MOST, "of_images": 120, "shared": False}
    assert against["images_in_both"] == 0 and not against["paired"]


def test_a_small_run_is_read_as_a_whole(tmp_path, read_shards):
    before = named(drawn_images(tmp_path / "drawn", number=0), MOST, "night")
    assert runs(tmp_path, before[:3], before)["sampled"] is None and len(read_shards) == MOST // 3


def test_parts_are_near_if_a_key_may_lie_in_them():
    scratch = ScratchDatabase(64)
    rows = [("b", 0), ("d", 0), ("p", 1), ("c", 2), ("x", 2)]
    scratch.connection.execute(f"CREATE TABLE {tallies.NOW}_images (image_key VARCHAR, shard INTEGER)")
    scratch.connection.executemany(f"INSERT INTO {tallies.NOW}_images VALUES (?, ?)", rows)
    spans = {"a..a": False, "a..b": True, "e..f": True, "x..z": True, "y..z": False, "d..d": True}
    parts = [Part(n, 1, *span.split("..")) for n, span in enumerate(spans)]
    assert [part.shard for part in _near(parts, scratch)] == [n for n, near in enumerate(spans.values()) if near]
    assert _near([Part(0, 1, None, None)], scratch) and not _near([], scratch)
    scratch.close()
