"""Label PNGs: the category of each pixel, in the ids of the label map."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.support.evaluation_runs import MadeImage, Place, Segment
from tests.support.exports import decoded, export, refused, segments_by_key
from tests.support.published_runs import write_published


def names_and_rows(tables: str):
    return [
        (key.removeprefix("s3://photographs/").rpartition(".")[0], rows)
        for key, rows in segments_by_key(tables).items()
    ]


@pytest.mark.parametrize(("flags", "ignore", "mode"), [([], 255, "L"), (["--palette", "--ignore-label=0"], 0, "P")])
def test_pixels_are_the_ids_of_the_categories(tables, tmp_path, flags, ignore, mode):
    out = export(tables, tmp_path / "out", "label-png", *flags)
    for name, rows in names_and_rows(tables):
        image = Image.open(out / f"{name}.png")
        labels = np.array(image)
        expected = np.full(labels.shape, ignore)
        for row in rows:
            expected[decoded(row["segmentation"])] = row["category_id"]
        assert image.mode == mode and labels.dtype == np.uint8
        assert np.array_equal(labels, expected)
    about = json.loads((out / "categories.json").read_text())
    assert about["ignore_label"] == ignore and about["bits"] == 8
    assert [category["id"] for category in about["categories"]] == [3, 7, 40, 92]
    assert not list(out.rglob("*.tmp")) and not (out / ".m2f-export").exists()


def test_ids_above_254_take_16_bits(tmp_path):
    categories = [{"id": 0, "name": "first", "isthing": 0}, {"id": 300, "name": "last", "isthing": 0}]
    mask = np.zeros((3, 4), bool)
    mask[1, 1:3] = True
    first = np.zeros((3, 4), bool)
    first[0] = True
    images = [MadeImage("a.jpg", (3, 4), found=[Segment(mask, 300), Segment(first, 0)])]
    tables = write_published(Place(str(tmp_path / "run"), categories), images)
    out = export(tables, tmp_path / "out", "label-png")
    labels = np.array(Image.open(out / "a.png"))
    assert labels.tolist() == [[0] * 4, [65535, 300, 300, 65535], [65535] * 4]
    assert "need 16" in refused(tables, tmp_path / "other", "label-png", "--palette")


def test_what_would_be_lost_is_named(tables, instances, tmp_path):
    assert "which instance a pixel belongs to" in refused(instances, tmp_path / "a", "label-png")
    assert "--ignore-label 7 is a category's id" in refused(tables, tmp_path / "b", "label-png", "--ignore-label=7")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
