"""The job with a MaskFormer: its tables are what a plain loop over the model finds, in both modes."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from jobs import segment_bucket, verify
from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.images.geometry import ImageGeometry
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.images.image_size import ImageSize
from tests.support.inputs import make_model
from tests.support.tables import read_report, read_table, results_by_image

SIZE = "160:267"
PHOTOGRAPHS = ("chelsea.png", "coffee.png", "rocket.jpg")
STUFF = {5, 6, 7}  # classes of the checkpoint, whose category ids are one more
Segments = list[tuple[int, float, np.ndarray]]  # class, score, mask


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("maskformer") / "tiny"
    make_model(folder, tiny=MaskFormerConfig.tiny)
    return folder


@pytest.fixture(scope="module")
def bucket(photographs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bucket")
    for name in PHOTOGRAPHS:
        shutil.copy(photographs / name, folder)
    return folder


def run(bucket: Path, model: Path, output: Path, *flags: str) -> dict[str, Segments]:
    """Run the job; the segments of each image in the order of their rows."""
    places = ["--input", bucket, "--output", output, "--model", model, "--image-size", SIZE, "--images-per-shard", 2]
    assert segment_bucket.main([*map(str, places), *flags]) == 0
    found = results_by_image(output)
    assert sorted(found) == list(PHOTOGRAPHS)
    assert {row["status"] for row, _ in found.values()} == {"ok"}
    return {
        name: [(row["category_id"] - 1, row["score"], coco.decode(row["segmentation"]) > 0) for row in rows]
        for name, (_, rows) in found.items()
    }


def outputs(bucket: Path, name: str, model: torch.nn.Module, mode: str) -> tuple[Any, ImageGeometry]:
    processor = ImageProcessor(mode, ImageSize.parse(SIZE))
    image = Image.open(bucket / name).convert("RGB")
    geometry = processor.geometry(image.height, image.width)
    with torch.inference_mode():
        return model(processor.to_batch([processor.resize(image)], geometry.padded_hw, "cpu")), geometry


def authors_segments(output: Any, geometry: ImageGeometry) -> Segments:
    """The panoptic segments of MaskFormer's `panoptic_inference`, with the thresholds of its COCO configurations."""
    (height, width), resize = geometry.resized_hw, torch.nn.functional.interpolate
    masks = resize(output.masks_queries_logits, size=geometry.padded_hw, mode="bilinear", align_corners=False)
    masks = resize(masks[:, :, :height, :width], size=geometry.original_hw, mode="bilinear", align_corners=False)
    scores, classes = output.class_queries_logits[0].softmax(-1).max(-1)
    kept = (classes != 8) & (scores > 0.8)
    scores, classes, probabilities = scores[kept], classes[kept], masks[0, kept].sigmoid()
    if not len(scores):
        return []
    winner = (scores[:, None, None] * probabilities).argmax(0)
    segments: Segments = []
    for query, class_id in enumerate(classes.tolist()):
        won, inside = winner == query, probabilities[query] >= 0.5
        if not won.any() or not inside.any() or won.sum().item() / inside.sum().item() < 0.8:
            continue
        same = [place for place, one in enumerate(segments) if one[0] == class_id and class_id in STUFF]
        if same:
            segments[same[0]] = (class_id, segments[same[0]][1], segments[same[0]][2] | won.numpy())
        else:
            segments.append((class_id, scores[query].item(), won.numpy()))
    return segments


def assert_equal(found: Segments, expected: Segments, may_differ: int = 0) -> None:
    """The same classes and scores in the same order; `may_differ` pixels of a mask are decided by rounding."""
    assert [class_id for class_id, _, _ in found] == [class_id for class_id, _, _ in expected]
    for (_, score, mask), (_, their_score, their_mask) in zip(found, expected, strict=True):
        assert score == pytest.approx(their_score, abs=1e-5)
        assert np.count_nonzero(mask != their_mask) <= may_differ


@pytest.mark.usefixtures("ray_session")
def test_the_tables_are_those_of_the_authors(bucket, model, tmp_path):
    found = run(bucket, model, tmp_path / "out")
    network = Checkpoint(model).load()
    for name, segments in found.items():
        assert_equal(segments, authors_segments(*outputs(bucket, name, network, "reference")), may_differ=3)
    assert sum(map(len, found.values())) >= 5
    report = read_report(tmp_path / "out")
    assert (report["num_images"], report["num_ok"], report["num_failed"]) == (3, 3, 0)
    assert verify.main(["--tables", str(tmp_path / "out")]) == 0


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_in_mode_hf_they_are_transformers(bucket, model, tmp_path, task):
    """Of its model and its post-processing, on the same pixels."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    found = run(bucket, model, tmp_path / "out", "--task", task, "--preprocess", "hf", "--postprocess", "hf")
    theirs = transformers.MaskFormerForInstanceSegmentation.from_pretrained(model).eval()
    processor = transformers.MaskFormerImageProcessor()
    for name, segments in found.items():
        output, geometry = outputs(bucket, name, theirs, "hf")
        size = {"target_sizes": [geometry.original_hw]}
        logits = SimpleNamespace(
            class_queries_logits=output.class_queries_logits, masks_queries_logits=output.masks_queries_logits
        )
        if task == "semantic":
            [ids] = processor.post_process_semantic_segmentation(logits, **size)
            expected = [(class_id, None, ids.numpy() == class_id) for class_id in ids.unique().tolist()]
            segments = [(class_id, None, mask) for class_id, _, mask in segments]
        else:
            [result] = (
                processor.post_process_panoptic_segmentation(logits, label_ids_to_fuse=STUFF, **size)
                if task == "panoptic"
                else processor.post_process_instance_segmentation(logits, return_binary_maps=True, **size)
            )
            maps, rows = result["segmentation"].numpy(), result["segments_info"]
            masks = [maps == row["id"] for row in rows] if task == "panoptic" else list(maps > 0)[: len(rows)]
            pairs = sorted(zip(rows, masks, strict=True), key=lambda pair: pair[0]["id"])  # ids repeat: issue 23461
            expected = [(row["label_id"], row["score"], mask) for row, mask in pairs]
        assert_equal(segments, expected, may_differ=3)
    assert sum(map(len, found.values())) >= 5


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_session")
def test_another_family_is_another_model(bucket, model, tiny_checkpoint, tmp_path):
    """The same command does nothing; a checkpoint of another family does all images again."""
    first = run(bucket, model, tmp_path / "out")
    again = run(bucket, model, tmp_path / "out")
    assert first.keys() == again.keys()
    assert len(list((tmp_path / "out" / "_runs").glob("*/report.json"))) == 1
    [fingerprint] = {row["fingerprint"] for row in read_table(tmp_path / "out", "images")}
    run(bucket, tiny_checkpoint, tmp_path / "out")
    rows = read_table(tmp_path / "out", "images")
    assert len(rows) == 3
    assert {row["reason"] for row in rows} == {"model_changed"}
    assert fingerprint not in {row["fingerprint"] for row in rows}
