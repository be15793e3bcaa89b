"""Scenes that fit the network both ways: what tiles find is what the whole image shows, across the seam too."""

import io

import pytest
from PIL import Image

from m2f_core.inference.settings import PanopticSettings
from m2f_core.inference.tiling import Tiling
from pipeline.evaluate.metrics import panoptic_summary, panoptic_sums
from pipeline.scenes.draw import CATEGORIES, draw_scene
from pipeline.scenes.write import scene_annotations
from pipeline.segment.checkpoint import stage_model
from pipeline.segment.segmenter import Segmenter
from pipeline.segment.spec import SegmentedImage
from tests.support.segmenting import small_spec

MODEL = stage_model("synthetic-scenes")
CATEGORY_IDS = [category.category_id for category in MODEL.labels.categories]
HEIGHT, WIDTH, NUMBER = 128, 213, 16  # the size of the training, and the longest that --image-size 128:213 leaves as is


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(77, index, HEIGHT, WIDTH) for index in range(NUMBER)]


def found(scenes, tiling: Tiling | None) -> list[SegmentedImage]:
    spec = small_spec(
        MODEL.path, image_size=None, inference=PanopticSettings.for_labels("reference", MODEL.labels), tiling=tiling
    )
    files = []
    for scene in scenes:
        buffer = io.BytesIO()
        Image.fromarray(scene.pixels_HW3).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return Segmenter(spec).segment(files)


def in_coco_form(images: list[SegmentedImage]) -> list[dict]:
    rows = []
    for image_id, image in enumerate(images, 1):
        for s in image.segments:
            segmentation = {"size": [HEIGHT, WIDTH], "counts": s.mask.counts.decode()}
            rows.append({"image_id": image_id, "category_id": CATEGORY_IDS[s.class_id], "segmentation": segmentation})
    return numbered(rows)


def numbered(rows: list[dict]) -> list[dict]:
    return [{**row, "id": number, "iscrowd": 0} for number, row in enumerate(rows, 1)]


def quality(truth: list[dict], predicted: list[dict]) -> float:
    images = [{"id": n, "height": HEIGHT, "width": WIDTH, "file_name": str(n)} for n in range(1, NUMBER + 1)]
    return panoptic_summary(panoptic_sums(images, truth, predicted, CATEGORIES), CATEGORIES)["all"]["PQ"]


def test_tiles_find_what_the_whole_image_shows(scenes):
    """The scene of 213 pixels is cut in two in the middle, where as many things lie as elsewhere."""
    whole, tiled = found(scenes, None), found(scenes, Tiling(128, 43))
    truth = numbered([{**row, "image_id": n} for n, scene in enumerate(scenes, 1) for row in scene_annotations(scene)])
    rows = in_coco_form(whole), in_coco_form(tiled)
    qualities = quality(truth, rows[0]), quality(truth, rows[1]), quality(*rows)
    print("PQ of whole images {:.3f}, of tiles {:.3f}, of tiles against whole images {:.3f}".format(*qualities))
    assert qualities[1] > 0.9 * qualities[0]
    assert qualities[2] > 0.8
