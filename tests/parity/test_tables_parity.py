"""Rows of the tables with `--postprocess hf` against transformers' post-processing of the same decoder outputs.

As in a run: bytes of photographs through the actor and the encoder, without Ray in between. What our model gave is
recorded, so the network's own rounding is not in the comparison; tests/parity/test_model_parity.py has that.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as coco

pytest.importorskip("transformers", reason="transformers is the oracle of hf mode")
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from m2f_core.config.labels import Task
from pipeline.commit.encode import EncodeSpec, encode_shard
from pipeline.config import Settings
from pipeline.runs.check import check_model
from pipeline.schema import FETCHED
from pipeline.segment.actor import segmented_table
from pipeline.segment.segmenter import Segmenter
from pipeline.segment.spec import SegmentSpec

PHOTOGRAPHS = ("coffee.png", "rocket.jpg", "chelsea.png")
STUFF = {5, 6, 7}  # classes of the tiny checkpoint, whose category ids are one more
THEIRS = Mask2FormerImageProcessorPil()


@dataclass
class Segmented:
    """A photograph: decoder outputs, as transformers wants them, and rows of `segments`."""

    outputs: Any
    size: tuple[int, int]  # height, width
    rows: list[dict[str, Any]]

    @property
    def masks(self) -> list[np.ndarray]:
        return [coco.decode(row["segmentation"]) for row in self.rows]


@pytest.fixture(scope="module")
def segment(photographs, tiny_checkpoint):
    """Task -> the three photographs as a run with both modes hf has them."""

    def run(task: Task) -> list[Segmented]:
        modes = {"preprocess": "hf", "postprocess": "hf"}
        settings = Settings("in", "out", str(tiny_checkpoint), task, image_size="320:533", **modes)
        model = check_model(settings)
        spec = SegmentSpec(
            model=model.name,
            weights_sha256=model.weights_sha256,
            preprocess=settings.preprocess,
            image_size=settings.parsed_image_size(),
            exif=True,
            max_image_pixels=settings.most_image_pixels(),
            inference=model.inference,
            precision="fp32",
            device="cpu",
            threads=1,
            batch_size=1,
            max_batch_pixels=1,
        )
        segmenter, outputs = Segmenter(spec), []
        segmenter.network.model.register_forward_hook(lambda _, __, output: outputs.append(output))
        results = segmenter.segment([(photographs / name).read_bytes() for name in PHOTOGRAPHS])
        planned = [{"image_key": name, "etag": "e", "size_bytes": 1, "reason": "new"} for name in PHOTOGRAPHS]
        fetched = pa.Table.from_pylist(planned, schema=pa.schema([f for f in FETCHED if f.name != "data"]))
        spec = EncodeSpec("run", datetime(2026, 11, 25, tzinfo=UTC), "f00d", 1, task, model.labels.categories)
        rows = encode_shard(0, segmented_table(fetched, results), spec)["segments"].to_pylist()
        return [
            Segmented(output, (r.height, r.width), [row for row in rows if row["image_key"] == name])
            for output, r, name in zip(outputs, results, PHOTOGRAPHS, strict=True)
        ]

    return run


def test_panoptic_rows_are_transformers_segments(segment):
    for image in segment("panoptic"):
        [theirs] = THEIRS.post_process_panoptic_segmentation(
            image.outputs, label_ids_to_fuse=STUFF, target_sizes=[image.size]
        )
        assert len(image.rows) >= 2
        for row, mask, info in zip(image.rows, image.masks, theirs["segments_info"], strict=True):
            assert (row["segment_id"], row["category_id"] - 1) == (info["id"], info["label_id"])
            assert row["score"] == pytest.approx(info["score"], abs=1e-6)
            assert np.array_equal(mask, theirs["segmentation"].numpy() == info["id"])


def test_instance_rows_are_transformers_instances(segment):
    """In transformers' order, its ids from 0, stuff and overlaps included."""
    shared = stuff = 0
    for image in segment("instance"):
        [theirs] = THEIRS.post_process_instance_segmentation(
            image.outputs, target_sizes=[image.size], return_binary_maps=True
        )
        assert len(image.rows) >= 2
        for row, info in zip(image.rows, theirs["segments_info"], strict=True):
            assert (row["segment_id"] - 1, row["category_id"] - 1) == (info["id"], info["label_id"])
            assert row["score"] == pytest.approx(info["score"], abs=1e-6)
            assert row["isthing"] == (info["label_id"] not in STUFF)
        assert np.array_equal(np.stack(image.masks), theirs["segmentation"].numpy())
        shared += int((np.sum(image.masks, axis=0) > 1).sum())
        stuff += sum(not row["isthing"] for row in image.rows)
    assert shared and stuff


def test_semantic_rows_are_transformers_map(segment):
    for image in segment("semantic"):
        [theirs] = THEIRS.post_process_semantic_segmentation(image.outputs, target_sizes=[image.size])
        assert len(image.rows) >= 2
        class_map = (
            sum(mask.astype(int) * row["segment_id"] for row, mask in zip(image.rows, image.masks, strict=True)) - 1
        )
        assert np.array_equal(class_map, theirs.numpy())
        assert all(row["category_id"] == row["segment_id"] for row in image.rows)
