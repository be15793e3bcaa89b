"""Exports, read back by the tools that own the formats, in an environment of their own: `make test-roundtrip`.

The versions that these tools need collide with ours. Where ROUNDTRIP_PYTHON does not name the Python of that
environment, the tests skip; the formats are also decoded by hand in tests/pipeline/export.
"""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.evaluation_runs import Place
from tests.support.exports import decoded, export, segments_by_key
from tests.support.places import ROOT
from tests.support.published_runs import made_images, write_published

PYTHON = os.environ.get("ROUNDTRIP_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="`make test-roundtrip` makes the environment of the tools")
PREFIX = "s3://photographs/"


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> str:
    return write_published(Place(str(tmp_path_factory.mktemp("panoptic"))), made_images())


@pytest.fixture(scope="module")
def instances(tmp_path_factory) -> str:
    images = made_images(1, disjoint=False)
    return write_published(Place(str(tmp_path_factory.mktemp("instance"))), images, task="instance")


def read_back(form: str, out: Path) -> list[tuple[str, str, np.ndarray]]:
    """(image, category, mask) of each object, as the tool reads it."""
    found = out.with_name(f"{out.name}.npz")
    done = subprocess.run(
        [PYTHON, str(ROOT / "tests/roundtrip/readers.py"), form, str(out), str(found)],
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(found) as masks:
        return [(*name.split("|")[::2], masks[name]) for name in masks.files]


def wanted(tables: str, name=lambda key: key) -> list[tuple[str, str, np.ndarray]]:
    return [
        (name(key), row["category_name"], decoded(row["segmentation"]))
        for key, rows in segments_by_key(tables).items()
        for row in rows
    ]


def assert_equal(found, expected) -> None:
    order = lambda one: (*one[:2], one[2].tobytes())  # noqa: E731
    found, expected = sorted(found, key=order), sorted(expected, key=order)
    assert [one[:2] for one in found] == [one[:2] for one in expected] and len(expected) > 10
    assert all(np.array_equal(a[2], b[2]) for a, b in zip(found, expected, strict=True))


def stem(key: str) -> str:
    return key.removeprefix(PREFIX).rpartition(".")[0]


def write_pictures(tables: str, folder: Path, name) -> None:
    """Black pictures in place of the images, which some tools want to see."""
    for key, rows in segments_by_key(tables).items():
        path = folder / name(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", rows[0]["segmentation"]["size"][::-1] if rows else (5, 7)).save(path)


def test_yolo_by_supervision(instances, tmp_path, capsys):
    out = export(instances, tmp_path / "out", "yolo")
    printed = float(re.search(r"IoU (\d\.\d+)", capsys.readouterr().out)[1])
    write_pictures(instances, out / "images", lambda key: f"{stem(key)}.png")
    found, expected = sorted(read_back("yolo", out), key=lambda one: one[0]), wanted(instances, stem)
    assert [one[:2] for one in found] == [one[:2] for one in expected]
    inside = sum(int((a[2] & b[2]).sum()) for a, b in zip(found, expected, strict=True))
    union = sum(int((a[2] | b[2]).sum()) for a, b in zip(found, expected, strict=True))
    assert f"{inside / union:.6f}" == f"{printed:.6f}" and printed < 1


def test_label_studio_by_its_sdk(instances, tmp_path):
    assert_equal(read_back("label-studio", export(instances, tmp_path / "out", "label-studio")), wanted(instances))


def test_cvat_by_datumaro(instances, tmp_path):
    out = export(instances, tmp_path / "out", "cvat")
    write_pictures(instances, out / "images", lambda key: key.removeprefix(PREFIX))
    assert_equal(read_back("cvat", out), wanted(instances, stem))


def test_hugging_face_by_datasets(instances, tmp_path):
    assert_equal(read_back("hf", export(instances, tmp_path / "out", "hf", "--no-images")), wanted(instances))


def test_fiftyone_by_fiftyone(instances, tmp_path):
    assert_equal(read_back("fiftyone", export(instances, tmp_path / "out", "fiftyone")), wanted(instances))


def test_coco_panoptic_by_datumaro(tables, tmp_path):
    """datumaro has its own layout: annotations/panoptic_<subset>.json, and the PNGs in a folder beside it."""
    out = export(tables, tmp_path / "exported", "coco-panoptic")
    (tmp_path / "out" / "annotations").mkdir(parents=True)
    (out / "panoptic.json").rename(tmp_path / "out" / "annotations" / "panoptic_train.json")
    (out / "panoptic").rename(tmp_path / "out" / "annotations" / "panoptic_train")
    write_pictures(tables, tmp_path / "out" / "images" / "train", lambda key: key.removeprefix(PREFIX))
    assert_equal(read_back("coco-panoptic", tmp_path / "out"), wanted(tables, stem))
