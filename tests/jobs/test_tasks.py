"""`--task instance` and `--task semantic`, whole: one run of the job each, what its tables say, how it is scored."""

import json
import shutil
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from jobs import evaluate, segment_bucket, verify
from tests.support.evaluation_oracles import coco_api, coco_results, semantic_scores
from tests.support.evaluation_runs import (
    MadeImage,
    Place,
    Segment,
    bitten,
    coco_instances,
    found_by_run,
    write_labels,
    write_panoptic,
)
from tests.support.tables import read_table

pytestmark = pytest.mark.thorough

THINGS, STUFF = range(1, 6), range(6, 9)  # category ids of the tiny checkpoint


@dataclass
class TaskRun:
    """A finished run, and what it found as if it were the truth."""

    place: Place
    output: Path
    images: list[MadeImage]

    def rows(self) -> list[list[dict[str, Any]]]:
        """Rows of `segments`, image by image."""
        by_image: dict[str, list[dict[str, Any]]] = {}
        for row in read_table(self.output, "segments"):
            by_image.setdefault(row["image_key"], []).append(row)
        return list(by_image.values())

    def scored(self, *ground_truth: str) -> dict[str, Any]:
        report = f"{self.place.root}/report.json"
        flags = ["--tables", str(self.output), *ground_truth, "--report", report, "--workers", "1"]
        assert evaluate.main(flags) == 0
        return json.loads(Path(report).read_text())


def finished(task: str, photographs: Path, model: Path, root: Path, *more: str) -> TaskRun:
    folder, output = root / "in", root / "out"
    folder.mkdir()
    for name in ("coffee.png", "rocket.jpg", "chelsea.png"):
        shutil.copy(photographs / name, folder)
    flags = ["--input", folder, "--output", output, "--model", model, "--image-size", "160:267", "--task", task]
    assert segment_bucket.main([*map(str, flags), "--images-per-shard", "2", *more]) == 0
    categories, images = found_by_run(output, folder)
    assert len(images) == 3
    return TaskRun(Place(str(root), categories=categories), output, images)


@pytest.fixture(scope="module")
def instance_run(ray_session, photographs, tiny_checkpoint, tmp_path_factory) -> TaskRun:
    return finished("instance", photographs, tiny_checkpoint, tmp_path_factory.mktemp("instance"))


@pytest.fixture(scope="module")
def semantic_run(ray_session, photographs, tiny_checkpoint, tmp_path_factory) -> TaskRun:
    return finished("semantic", photographs, tiny_checkpoint, tmp_path_factory.mktemp("semantic"))


def test_instances_are_things_numbered_by_score_and_may_overlap(instance_run):
    overlaps = 0
    for rows in instance_run.rows():
        assert [row["segment_id"] for row in rows] == list(range(1, len(rows) + 1))
        scores = [row["score"] for row in rows]
        assert scores == sorted(scores, reverse=True) and 0 < scores[-1] <= scores[0] <= 1
        assert {row["category_id"] for row in rows} <= set(THINGS) and all(row["isthing"] for row in rows)
        for row in rows:
            assert coco.area(row["segmentation"]) == row["area"]
            assert coco.toBbox(row["segmentation"]).tolist() == row["bbox"]
        pairs = combinations([row["segmentation"] for row in rows], 2)
        overlaps += sum(coco.area(coco.merge(list(pair), intersect=True)) > 0 for pair in pairs)
    assert overlaps > 10, "the tiny model should find overlapping instances, or these tests prove little"


def test_an_instance_run_is_scored(instance_run):
    place, images = instance_run.place, instance_run.images
    for truth in (images, bitten(np.random.default_rng(0), images)):
        instances = coco_instances(truth, place.categories)
        file = place.put("instances.json", json.dumps(instances).encode())
        report = instance_run.scored("--instances-gt", file)
        for kind in ("segm", "bbox"):
            expected = coco_api(instances, coco_results(truth, THINGS), kind)
            assert report[kind]["AP"] == pytest.approx(expected["AP"], abs=1e-9)
            assert report[kind]["AR100"] == pytest.approx(expected["AR100"], abs=1e-9)
        assert report["segm"]["AP"] == 1 if truth is images else 0 < report["segm"]["AP"] < 1


def test_a_semantic_map_has_a_class_for_every_pixel(semantic_run):
    for rows in semantic_run.rows():
        height, width = rows[0]["segmentation"]["size"]
        assert (np.sum([coco.decode(row["segmentation"]) for row in rows], axis=0) == 1).all()
        assert sum(row["area"] for row in rows) == height * width
        # Categories of the tiny checkpoint are numbered as its classes, from 1: so are segments.
        assert all(row["segment_id"] == row["category_id"] for row in rows)
        assert all(row["isthing"] == (row["category_id"] in THINGS) and 0 < row["score"] <= 1 for row in rows)
    found = {segment.category_id for image in semantic_run.images for segment in image.truth}
    assert found & set(THINGS) and found & set(STUFF)


def test_a_semantic_run_is_scored(semantic_run):
    place, images = semantic_run.place, semantic_run.images
    category_ids = [category["id"] for category in place.categories]
    for truth in (images, [left_half_of(image, category_ids[0]) for image in images]):
        expected = semantic_scores(truth, category_ids)["mIoU"]
        assert expected == 1 if truth is images else 0 < expected < 1
        for ground_truth in (
            ["--semantic-gt", write_labels(place, truth)],
            ["--panoptic-gt", write_panoptic(place, truth)],
        ):
            report = semantic_run.scored(*ground_truth)
            assert report["semantic"]["mIoU"] == pytest.approx(expected) and "panoptic" not in report


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_rows_of_some_classes_are_those_of_a_run_of_all(task, request, photographs, tiny_checkpoint, tmp_path):
    """Also where they leave most pixels in no segment; verification knows which classes were chosen."""
    of_all = request.getfixturevalue(f"{task}_run")
    chosen = {"class 2", "class 7"}
    some = finished(task, photographs, tiny_checkpoint, tmp_path, "--classes", *chosen)

    def found(run: TaskRun) -> list[tuple[Any, ...]]:
        rows = [row for rows in run.rows() for row in rows if row["category_name"] in chosen]
        return sorted(
            (Path(row["image_key"]).name, row["category_id"], row["score"], row["segmentation"]["counts"])
            for row in rows
        )

    assert found(some) == found(of_all) != []
    assert {row["category_name"] for rows in some.rows() for row in rows} <= chosen
    assert verify.main(["--tables", str(some.output), "--workers", "1"]) == 0


def left_half_of(image: MadeImage, category_id: int) -> MadeImage:
    """The image with its left half of one category in its truth."""
    left = np.zeros(image.size, bool)
    left[:, : image.size[1] // 2] = True
    rest = [replace(s, mask=s.mask & ~left) for s in image.truth if (s.mask & ~left).any()]
    return replace(image, truth=[*rest, Segment(left, category_id)])
