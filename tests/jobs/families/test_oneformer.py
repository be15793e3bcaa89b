"""A whole job with a OneFormer: its tables are what a plain loop over the same photographs finds, task by task.

tests/parity/test_oneformer_parity.py shows that the model is transformers'.
"""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from jobs import segment_bucket
from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.config.labels import Task
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.images.image_size import ImageSize
from pipeline.config import Settings
from pipeline.runs.check import check_model
from pipeline.segment.postprocess import found_segments, infer
from tests.support.tables import latest_run, read_report, read_table

PHOTOGRAPHS = ("coffee.png", "rocket.jpg", "chelsea.png")
SIZE = "96:160"


@pytest.fixture
def folder(photographs: Path, tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in PHOTOGRAPHS:
        shutil.copy(photographs / name, tmp_path / "in")
    return tmp_path / "in"


def night(folder: Path, output: Path, model: Path, task: Task, *more: str) -> int:
    flags = ["--input", folder, "--output", output, "--model", model, "--image-size", SIZE, "--task", task, *more]
    return segment_bucket.main([*map(str, flags), "--images-per-shard", "2", "--no-page"])


def plain_loop(folder: Path, model: Path, task: Task, modes: dict[str, str]) -> dict[str, list[tuple]]:
    """File name -> class, score and mask of each segment, one image at a time, on plain layers."""
    checkpoint = Checkpoint(model)
    network = checkpoint.load()
    network.set_task(task)
    inference = check_model(Settings("in", "out", str(model), task, image_size=SIZE, **modes)).inference
    processor = ImageProcessor.from_preprocessor_config(
        checkpoint.preprocessor_config, modes.get("preprocess", "reference"), ImageSize.parse(SIZE)
    )
    results = {}
    for path in sorted(folder.iterdir()):
        image = Image.open(path).convert("RGB")
        geometry = processor.geometry(image.height, image.width)
        with torch.inference_mode():
            output = network(processor.to_batch([processor.resize(image)], geometry.padded_hw))
            result = infer(output.class_queries_logits[0], output.masks_queries_logits[0], geometry, inference)
        size = [image.height, image.width]
        results[path.name] = [
            (one.class_id + 1, one.score, {"size": size, "counts": one.mask.counts}) for one in found_segments(result)
        ]
    return results


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("task", "modes"),
    [
        ("instance", {"preprocess": "hf", "postprocess": "hf"}),
        *(
            (task, modes)
            for task, modes in (
                ("panoptic", {}),
                ("instance", {}),
                ("semantic", {}),
                ("panoptic", {"preprocess": "hf", "postprocess": "hf"}),
            )
        ),
    ],
)
def test_tables_are_those_of_a_plain_loop(ray_session, folder, tiny_oneformer, tmp_path, task, modes) -> None:
    """The job packs weights, so scores differ in the last digits, and a pixel of a border in a thousand."""
    output = tmp_path / "out"
    assert night(folder, output, tiny_oneformer, task, *(f"--{name}={mode}" for name, mode in modes.items())) == 0
    images, report = read_table(output, "images"), read_report(output)
    assert len(images) == report["num_images"] == report["num_ok"] == 3
    rows = read_table(output, "segments")
    expected = plain_loop(folder, tiny_oneformer, task, modes)
    for name in PHOTOGRAPHS:
        found = [row for row in rows if row["image_key"].endswith(f"/{name}")]
        assert len(found) == len(expected[name]) > 0
        for row, (category_id, score, mask) in zip(found, expected[name], strict=True):
            assert row["category_id"] == category_id and row["score"] == pytest.approx(score, abs=1e-3)
            assert coco.iou([row["segmentation"]], [mask], [0])[0, 0] > 0.99


@pytest.mark.thorough
def test_the_next_night_does_nothing_and_another_task_does_all_again(
    ray_session, folder, tiny_oneformer, tmp_path
) -> None:
    output = tmp_path / "out"
    assert night(folder, output, tiny_oneformer, "panoptic") == 0
    first = latest_run(output)
    assert night(folder, output, tiny_oneformer, "panoptic") == 0
    assert latest_run(output) == first
    assert night(folder, output, tiny_oneformer, "semantic") == 0
    assert latest_run(output) != first
    assert {row["reason"] for row in read_table(output, "images")} == {"settings_changed"}
