"""--tile, whole: one run of the job for each task, whose encoder checks every invariant of the tables again."""

import json
import shutil

import numpy as np
import pytest
from pycocotools import mask as coco

from jobs import segment_bucket
from tests.support.geotiffs import gdal_file
from tests.support.tables import read_table

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_large_images_are_rows_like_all_others(ray_session, photographs, tiny_checkpoint, tmp_path, task):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("coffee.png", "rocket.jpg", "chelsea.png"):
        shutil.copy(photographs / name, folder)
    affine = pytest.importorskip("rasterio").Affine(0.5, 0, 500000, 0, -0.5, 5000000)
    pixels = np.random.default_rng(0).integers(0, 255, (300, 420, 3), np.uint8)
    (folder / "field.tif").write_bytes(gdal_file(pixels, crs="EPSG:32633", transform=affine, compress="lzw"))
    (folder / "broken.png").write_bytes((folder / "coffee.png").read_bytes()[:100_000])
    flags = ["--input", folder, "--output", tmp_path / "out", "--model", tiny_checkpoint, "--task", task]
    more = ["--image-size", "64:128", "--tile", "200:50", "--max-failure-rate", "1"]
    assert segment_bucket.main([*map(str, flags), *more]) == 0
    images = {row["image_key"].rpartition("/")[2]: row for row in read_table(tmp_path / "out", "images")}
    assert {name: row["error_code"] for name, row in images.items()} == {
        "coffee.png": None,
        "rocket.jpg": None,
        "chelsea.png": None,
        "field.tif": None,
        "broken.png": "decode_failed",
    }
    assert json.loads(images["field.tif"]["attributes"])["geotiff"]["crs"] == "EPSG:32633"
    assert images["coffee.png"]["attributes"] is None
    assert (images["coffee.png"]["height"], images["coffee.png"]["width"]) == (400, 600)
    rows = [row for row in read_table(tmp_path / "out", "segments") if row["image_key"].endswith("coffee.png")]
    assert len(rows) == images["coffee.png"]["num_segments"] > 0
    assert all(row["segmentation"]["size"] == [400, 600] for row in rows)
    covered = np.sum([coco.decode(row["segmentation"]) for row in rows], axis=0)
    if task == "semantic":
        assert (covered == 1).all()
    if task == "panoptic":
        assert covered.max() == 1
    wide = [row for row in rows if row["bbox"][2] > 200 or row["bbox"][3] > 200]
    assert wide, "segments across the seams of tiles"
