"""COCO exports, read back by the tools that own the formats, and by hand."""

import json

import numpy as np
import pytest
from hotcoco.panoptic import pq_compute
from PIL import Image
from pycocotools.coco import COCO

from m2f_core.masks.panoptic_png import panoptic_ids
from pipeline.tables.rows_by_image import RowsByImage
from tests.support.exports import decoded, export, refused, segments_by_key


def test_panoptic_is_what_the_tables_hold(tables, tmp_path):
    export(tables, tmp_path / "out", "coco-panoptic")
    document = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    expected = segments_by_key(tables)
    images = {image["id"]: image for image in document["images"]}
    assert [image["image_key"] for image in document["images"]] == list(expected)
    for annotation in document["annotations"]:
        image = images[annotation["image_id"]]
        ids = panoptic_ids(np.array(Image.open(tmp_path / "out" / "panoptic" / annotation["file_name"])))
        assert ids.shape == (image["height"], image["width"])
        rows = expected[image["image_key"]]
        assert len(annotation["segments_info"]) == len(rows)
        for info, row in zip(annotation["segments_info"], rows, strict=True):
            assert np.array_equal(ids == info["id"], decoded(row["segmentation"]))
            assert {name: info[name] for name in ("area", "bbox", "category_id", "score")} == {
                name: row[name] for name in ("area", "bbox", "category_id", "score")
            }
        assert np.isin(ids, [0, *(row["segment_id"] for row in rows)]).all()


def test_panoptic_quality_against_the_tables_is_perfect(tables, tmp_path):
    export(tables, tmp_path / "out", "coco-panoptic")
    place = tmp_path / "out" / "panoptic.json"
    # The other side is painted from the tables by pycocotools and Pillow.
    document = json.loads(place.read_text())
    files = {annotation["image_id"]: annotation["file_name"] for annotation in document["annotations"]}
    for image, rows in zip(document["images"], segments_by_key(tables).values(), strict=True):
        pixels = np.zeros((image["height"], image["width"], 3), np.uint8)
        for row in rows:
            pixels[decoded(row["segmentation"])] = [row["segment_id"], 0, 0]
        painted = tmp_path / "painted" / files[image["id"]]
        painted.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(painted)
    (tmp_path / "painted.json").write_text(json.dumps(document))
    quality = pq_compute(str(place), str(tmp_path / "painted.json"))
    assert quality["All"]["pq"] == 1.0 and quality["All"]["n"] > 1


def test_instances_are_read_by_pycocotools(instances, tmp_path):
    export(instances, tmp_path / "out", "coco-instances")
    coco = COCO(tmp_path / "out" / "instances.json")
    expected = segments_by_key(instances)
    assert [image["image_key"] for image in coco.dataset["images"]] == list(expected)
    for image_id, image in coco.imgs.items():
        assert type(image_id) is int
        found = coco.loadAnns(coco.getAnnIds(image_id))
        for annotation, row in zip(found, expected[image["image_key"]], strict=True):
            assert np.array_equal(coco.annToMask(annotation), decoded(row["segmentation"]))
            assert all(annotation[name] == row[name] for name in ("area", "bbox", "category_id", "score"))
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    names = {category["id"]: category["name"] for category in coco.dataset["categories"]}
    assert names == {7: "cat", 3: "dog", 92: "sky", 40: "road"}


def test_results_are_read_by_pycocotools(instances, tmp_path):
    export(instances, tmp_path / "out", "coco-results")
    coco = COCO(tmp_path / "out" / "images.json")
    results = coco.loadRes(str(tmp_path / "out" / "results.json"))
    for image_id, image in coco.imgs.items():
        rows = segments_by_key(instances)[image["image_key"]]
        found = results.loadAnns(results.getAnnIds(image_id))
        assert [annotation["score"] for annotation in found] == [row["score"] for row in rows]
        for annotation, row in zip(found, rows, strict=True):
            assert np.array_equal(results.annToMask(annotation), decoded(row["segmentation"]))


def test_panoptic_from_overlapping_instances_is_one_line(instances, tmp_path):
    line = refused(instances, tmp_path / "out", "coco-panoptic")
    assert "gives a pixel to one segment, but s3://photographs/" in line and "which would be lost" in line
    assert not (tmp_path / "out").exists()


def test_panoptic_from_instances_that_do_not_overlap(instances, tmp_path):
    """One segment of each image is left over, so nothing is lost."""
    export(instances, tmp_path / "out", "coco-panoptic", "--where", "segment_id = 1")
    assert len(json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]) == 9


@pytest.mark.parametrize(("form", "name"), [("coco-instances", "instances.json"), ("coco-results", "results.json")])
def test_a_document_does_not_depend_on_batches(tables, tmp_path, monkeypatch, form, name):
    """Some batches have no segment, also the first one."""
    of_images = [{row["category_name"] for row in rows} for rows in segments_by_key(tables).values()]
    flags = ["--classes", min({"cat", "dog", "sky", "road"} - of_images[0])]
    whole = export(tables, tmp_path / "whole", form, *flags) / name
    in_batches = RowsByImage.batches
    monkeypatch.setattr(RowsByImage, "batches", lambda rows, images_per_batch: in_batches(rows, 1))
    again = export(tables, tmp_path / "again", form, *flags) / name
    assert json.loads(again.read_text()) == json.loads(whole.read_text())
    assert again.read_bytes() == whole.read_bytes()
