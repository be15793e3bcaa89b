"""Pages of nights that were really planned: the funnel by reason, and pictures of images in a tar."""

import io
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.config import Settings
from pipeline.page.publish import publish_page
from pipeline.page.settings import ReportSettings
from tests.support.planned_nights import night
from tests.support.tars import member, tar_of


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 40, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def figures_of(output: Path) -> dict:
    html = Path(publish_page(ReportSettings(str(output))).address)
    return json.loads((html.parent / "report.json").read_text())


def steps(figures: dict) -> dict[str, int]:
    return {one["name"]: one["images"] for one in figures["funnel"]}


def test_the_funnel_of_two_nights_over_a_folder(tmp_path, tiny_checkpoint):
    """Ten images and a broken one; then two are new, one is another, three are gone."""
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for n in range(10):
        (folder / f"{n}.png").write_bytes(picture(20 * n))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    settings = Settings(input=str(folder), output=str(output), model=str(tiny_checkpoint), tombstone_removed=True)
    night(settings)
    figures = figures_of(output)
    assert steps(figures) == {"listed": 11, "in this run": 11, "decode_failed": 1, "ok": 10}
    assert all(one["missing"] is None for one in figures["gallery"]["images"])
    (folder / "3.png").write_bytes(picture(250))
    os.utime(folder / "3.png", ns=(1, 1))
    for n in (0, 1, 2):
        (folder / f"{n}.png").unlink()
    for n in (20, 21):
        (folder / f"{n}.png").write_bytes(picture(n))
    report = night(settings)
    figures = figures_of(output)
    assert (report.num_images, report.num_removed) == (6, 3)
    assert steps(figures) == {
        "listed": 10,
        "unchanged": 7,
        "in this run": 3,
        "changed": 1,
        "new": 2,
        "ok": 3,
        "gone from the input": 3,
    }
    totals = figures["totals"]
    assert [totals[name] for name in ("images", "ok", "failed", "removed", "segments")] == [3, 3, 0, 3, 3]
    assert figures["against"]["images_in_both"] == 1
    in_gallery = {Path(one["image_key"]).name: one["missing"] for one in figures["gallery"]["images"]}
    assert in_gallery == {"3.png": None, "20.png": None, "21.png": None}


def test_pictures_of_images_in_a_tar(tmp_path, tiny_checkpoint):
    """The rows do not say where in the tar an image lies: the plan does."""
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "all.tar").write_bytes(tar_of([member(f"{n}.png", picture(40 * n)) for n in range(5)]))
    night(Settings(input=str(folder), output=str(output), model=str(tiny_checkpoint), input_format="tar"))
    figures = figures_of(output)
    shown = {one["image_key"].rpartition("#")[2]: one["missing"] for one in figures["gallery"]["images"]}
    assert shown == {f"{n}.png": None for n in range(5)} and steps(figures)["ok"] == 5
