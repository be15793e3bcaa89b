"""Results of the three tasks in one form; what the core makes of them is tested in tests/core."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference import instance_kernel, panoptic_kernel, semantic_kernel
from m2f_core.inference.instance import instance_segments
from m2f_core.inference.panoptic import PanopticResult, SegmentInfo, panoptic_segments
from m2f_core.inference.semantic import semantic_segments
from m2f_core.inference.settings import InstanceSettings, PanopticSettings, SemanticSettings
from m2f_core.masks import rle
from m2f_core.masks.run_map import RunMap
from pipeline.errors import InvalidResultError
from pipeline.segment.postprocess import found_segments, infer, warm_up
from tests.support.places import ROOT

GEOMETRY = ImageGeometry((30, 40), (60, 80), (64, 96))
TASKS = {
    "panoptic": (PanopticSettings, panoptic_segments),
    "instance": (InstanceSettings, instance_segments),
    "semantic": (SemanticSettings, semantic_segments),
}


def decoder_outputs(num_queries=6, num_classes=3):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(num_queries, num_classes + 1, generator=generator)
    return logits, 4 * torch.randn(num_queries, 16, 24, generator=generator)


@pytest.mark.parametrize("mode", ["reference", "hf"])
@pytest.mark.parametrize("task", TASKS)
def test_each_task_is_the_cores_and_every_segment_has_its_mask(task, mode):
    settings_class, inference = TASKS[task]
    settings = settings_class.defaults(mode)
    if task == "panoptic":
        settings = PanopticSettings(mode, 0.5, 0.1, 0.5)  # noise makes no segments that win most of their masks
    expected = inference(*decoder_outputs(), GEOMETRY, settings)
    result = infer(*decoder_outputs(), GEOMETRY, settings)
    assert type(result) is type(expected)
    segments = found_segments(result)
    assert len(segments) >= 2
    if task == "instance":
        assert result == expected
        rows = [(n, i.class_id, i.score, i.mask) for n, i in enumerate(expected.instances, 1)]
        assert [(s.segment_id, s.class_id, s.score, s.mask) for s in segments] == rows
        return
    infos = tuple(SegmentInfo(s.segment_id, s.class_id, s.score) for s in segments)
    assert infos == result.infos == expected.infos
    for segment in segments:
        inside_HW = np.asfortranarray(expected.label_map_HW == segment.segment_id, np.uint8)
        mask = coco.encode(inside_HW)
        assert (segment.mask.counts, segment.mask.area) == (mask["counts"], coco.area(mask))


@pytest.mark.parametrize("ids", [(1,), (1, 2, 3), (1, 3)])
def test_rows_that_are_not_those_of_the_map_are_a_bug(ids):
    label_map = RunMap.from_transposed(np.array([[1, 0], [1, 2]], np.uint8), 2)
    infos = tuple(SegmentInfo(segment_id, 0, 0.5) for segment_id in ids)
    with pytest.raises(InvalidResultError, match="but its map holds"):
        found_segments(PanopticResult(label_map, infos, len(ids)))


def test_warm_up_leaves_nothing_to_compile():
    """In a fresh process, because the tests above have compiled everything in this one."""
    code = (
        "from tests.pipeline.segment.test_postprocess import compiled_by_first_image\nprint(compiled_by_first_image())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [0, 0, 0]


def compiled_by_first_image() -> list[int]:
    """How many signatures each task's first image compiles, after warm-up."""
    counts = []
    for settings_class, _ in TASKS.values():
        settings = settings_class.defaults("reference")
        warm_up(settings)
        before = num_compiled()
        assert before > 0
        found_segments(infer(*decoder_outputs(), GEOMETRY, settings))
        counts.append(num_compiled() - before)
    return counts


def num_compiled() -> int:
    modules = (instance_kernel, panoptic_kernel, semantic_kernel, rle)
    functions = [function for module in modules for function in vars(module).values()]
    return sum(len(function.signatures) for function in functions if hasattr(function, "signatures"))
