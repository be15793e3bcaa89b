"""YOLO, Label Studio, CVAT and FiftyOne, decoded by hand; tests/roundtrip reads them with the tools that own them."""

import base64
import csv
import io
import json
import re
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from pipeline.errors import RunError
from pipeline.export.parts.image_urls import read_prefixes, url_of
from tests.support.evaluation_runs import MadeImage, Place, Segment
from tests.support.exports import decoded, export, refused, segments_by_key
from tests.support.painted_outlines import painted
from tests.support.published_runs import write_published
from tests.support.published_tables import image_row, publish_run


def test_yolo_loses_what_it_says(instances, tmp_path, capsys):
    out = export(instances, tmp_path / "out", "yolo")
    printed = capsys.readouterr().out
    names = yaml.safe_load((out / "data.yaml").read_text())["names"]
    assert names == {0: "dog", 1: "cat", 2: "road", 3: "sky"}
    with open(out / "images.csv", newline="") as file:
        paths = {row["image_key"]: row["path"] for row in csv.DictReader(file)}
    inside, union = 0, 0
    for key, rows in segments_by_key(instances).items():
        lines = (out / paths[key].replace("images/", "labels/")).with_suffix(".txt").read_text().splitlines()
        for line, row in zip(lines, rows, strict=True):
            number, *shares = line.split()
            assert names[int(number)] == row["category_name"] and len(shares) >= 6
            mask = decoded(row["segmentation"])
            pixels = np.array(shares, np.float32).reshape(-1, 2) * np.array(mask.shape[::-1], np.float32)
            corners = np.round(pixels).astype(int)
            assert np.array_equal(corners, np.floor(pixels)), "readers round either way"
            found = painted(corners, mask.shape)
            inside += (found & mask).sum()
            union += (found | mask).sum()
    assert f"IoU {inside / union:.6f} over all segments" in printed
    assert 0.5 < inside / union < 1


def test_yolo_keeps_holes(tmp_path, capsys):
    ring = np.ones((9, 9), bool)
    ring[2:7, 2:7] = False
    ring[4, 4] = False
    tables = write_published(Place(str(tmp_path / "run")), [MadeImage("a.jpg", (9, 9), found=[Segment(ring, 7)])])
    export(tables, tmp_path / "out", "yolo")
    assert "parts of 0 segments add 0 pixels to 56: IoU 1.000000" in capsys.readouterr().out


def brush_pixels(rle: list[int]) -> np.ndarray:
    """The format as its specification has it, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word, sizes = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        is_run, length = read(1), read(sizes[read(2)]) + 1
        values += [read(word)] * length if is_run else [read(word) for _ in range(length)]
    return np.array(values).reshape(-1, 4)


def test_label_studio_tasks_fit_their_labeling_config(tables, tmp_path):
    prefix = "s3://photographs/=https://images.example/get?d="
    out = export(tables, tmp_path / "out", "label-studio", "--image-url-prefix", prefix)
    config = ElementTree.parse(out / "labeling.xml").getroot()
    image, brush = config.find("Image"), config.find("BrushLabels")
    labels = {label.get("value") for label in brush}
    tasks = json.loads((out / "tasks.json").read_text())
    for task, (key, rows) in zip(tasks, segments_by_key(tables).items(), strict=True):
        assert task["data"]["image_key"] == key
        assert task["data"][image.get("value")[1:]] == key.replace("s3://photographs/", prefix.partition("=")[2])
        [prediction] = task["predictions"]
        assert prediction["model_version"] == "night"
        for result, row in zip(prediction["result"], rows, strict=True):
            height, width = row["segmentation"]["size"]
            assert (result["original_height"], result["original_width"]) == (height, width)
            assert (result["from_name"], result["to_name"]) == (brush.get("name"), image.get("name"))
            assert result["value"]["brushlabels"] == [row["category_name"]] and row["category_name"] in labels
            assert result["score"] == row["score"]
            pixels = brush_pixels(result["value"]["rle"])
            assert (pixels == pixels[:, :1]).all()
            assert np.array_equal(pixels[:, 0].reshape(height, width) == 255, decoded(row["segmentation"]))


def test_cvat_masks_are_the_tables(tables, tmp_path):
    out = export(tables, tmp_path / "out", "cvat")
    root = ElementTree.parse(out / "annotations.xml").getroot()
    names = [label.findtext("name") for label in root.iter("label")]
    images = root.findall("image")
    for image, (key, rows) in zip(images, segments_by_key(tables).items(), strict=True):
        assert image.get("name") == key.removeprefix("s3://photographs/")
        size = int(image.get("height")), int(image.get("width"))
        for mask, row in zip(image.findall("mask"), rows, strict=True):
            runs = list(map(int, mask.get("rle").split(", ")))
            left, top, width, height = (int(mask.get(name)) for name in ("left", "top", "width", "height"))
            found = np.zeros(size, bool)
            cut = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
            found[top : top + height, left : left + width] = cut
            assert np.array_equal(found, decoded(row["segmentation"]))
            assert mask.get("label") == row["category_name"] in names
            assert float(mask.findtext("attribute")) == row["score"]


def test_fiftyone_detections_are_the_tables(instances, tmp_path, capsys):
    out = export(instances, tmp_path / "out", "fiftyone")
    assert "10 images lie in a store" in capsys.readouterr().out
    samples = json.loads((out / "samples.json").read_text())["samples"]
    ids = []
    for sample, (key, rows) in zip(samples, segments_by_key(instances).items(), strict=True):
        assert sample["image_key"] == key and sample["filepath"] == key.replace("s3://photographs/", "data/")
        size = sample["metadata"]["height"], sample["metadata"]["width"]
        detections = sample["segments"]["detections"]
        ids += [sample["_id"]["$oid"], *(one["_id"]["$oid"] for one in detections)]
        for one, row in zip(detections, rows, strict=True):
            mask = np.load(io.BytesIO(zlib.decompress(base64.b64decode(one["mask"]["$binary"]["base64"]))))
            left, top, width, height = np.array(one["bounding_box"]) * [size[1], size[0], size[1], size[0]]
            assert mask.dtype == bool and mask.shape == (round(height), round(width)) and mask.flags["C_CONTIGUOUS"]
            found = np.zeros(size, bool)
            found[round(top) : round(top + height), round(left) : round(left + width)] = mask
            assert np.array_equal(found, decoded(row["segmentation"]))
            assert (one["label"], one["confidence"]) == (row["category_name"], row["score"])
            assert all(one[name] == row[name] for name in ("segment_id", "category_id", "isthing", "area"))
    assert len(set(ids)) == len(ids) > 30 and all(re.fullmatch("[0-9a-f]{24}", one) for one in ids)
    about = json.loads((out / "metadata.json").read_text())
    declared = {field["name"]: field for field in about["sample_fields"]}
    assert set(samples[0]) - {"_id"} <= set(declared)
    [of_detections] = declared["segments"]["fields"]
    of_one = samples[0]["segments"]["detections"][0]
    assert set(of_one) - {"_id", "_cls"} <= {field["name"] for field in of_detections["fields"]}
    assert about["default_classes"] == ["dog", "cat", "road", "sky"]


def test_fiftyone_is_told_where_images_are(instances, tmp_path):
    tables = write_published(Place(str(tmp_path / "run")), [MadeImage("a b#1.jpg", (2, 2))])
    for prefix, expected in (
        ("s3://photographs/=/data/", "/data/a b#1.jpg"),
        ("s3://p=s3://p", "s3://photographs/a b#1.jpg"),
    ):
        out = export(tables, tmp_path / prefix[-5:-1].strip("/"), "fiftyone", "--image-url-prefix", prefix)
        assert json.loads((out / "samples.json").read_text())["samples"][0]["filepath"] == expected
    of_files = str(tmp_path / "files")
    keys = ["file:///in/a b.jpg", "file:///in/x.tar#c.jpg"]
    publish_run(of_files, "night", [image_row(key, "night", 0, num_segments=0) for key in keys], [])
    samples = json.loads((export(of_files, tmp_path / "local", "fiftyone") / "samples.json").read_text())["samples"]
    assert [sample["filepath"] for sample in samples] == ["/in/a b.jpg", "data/x.tar%23c.jpg"]


def test_names_that_xml_escapes_or_cannot_hold(tmp_path):
    mask = np.ones((2, 2), bool)
    for number, (name, fits) in enumerate((('<a & "b">', True), ("bell\x07", False))):
        categories = [{"id": 1, "name": name, "isthing": 1}]
        images = [MadeImage("a&<b>'.jpg", (2, 2), found=[Segment(mask, 1)])]
        tables = write_published(Place(str(tmp_path / f"run{number}"), categories), images)
        if not fits:
            assert "cannot hold the control character in the name" in refused(tables, tmp_path / "no", "cvat")
            assert "cannot hold the control character in the name" in refused(tables, tmp_path / "no", "label-studio")
            continue
        root = ElementTree.parse(export(tables, tmp_path / "cvat", "cvat") / "annotations.xml").getroot()
        assert [mask.get("label") for mask in root.iter("mask")] == [name]
        out = export(tables, tmp_path / "studio", "label-studio")
        assert [label.get("value") for label in ElementTree.parse(out / "labeling.xml").iter("Label")] == [name]


def test_urls_of_images():
    prefixes = read_prefixes(("s3://b/=https://x/", "s3://b/in/=/data/local-files/?d=in/", "gs://b/=s3://c/"))
    assert url_of("s3://b/a b#1.jpg", prefixes) == "https://x/a%20b%231.jpg"
    assert url_of("s3://b/in/c.jpg", prefixes) == "/data/local-files/?d=in/c.jpg"
    assert url_of("gs://b/a b.jpg", prefixes) == "s3://c/a b.jpg"
    assert url_of("file:///a.jpg", prefixes) == "file:///a.jpg"
    with pytest.raises(RunError, match="must be FROM=TO"):
        read_prefixes(("s3://b/",))
