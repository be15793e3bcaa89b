"""The names of an EoMT's published checkpoints show their task and their licence."""

from pathlib import Path

import pytest

from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.checkpoints.licenses import UNKNOWN, model_license
from m2f_core.checkpoints.zoo import task_of_name
from m2f_core.config.labels import LabelMap
from tests.support.seeded_eomt import make_eomt

NAMES = {
    "tue-mps/coco_panoptic_eomt_large_640": "panoptic",
    "tue-mps/coco_panoptic_eomt_small_640_2x": "panoptic",
    "tue-mps/ade20k_panoptic_eomt_giant_1280": "panoptic",
    "tue-mps/coco_instance_eomt_large_640": "instance",
    "tue-mps/ade20k_semantic_eomt_large_512": "semantic",
    "tue-mps/cityscapes_semantic_eomt_large_1024": "semantic",
    "copies/ade20k_semantic_eomt_large_512": "semantic",
    "my_eomt": None,
}


@pytest.mark.parametrize(("name", "task"), NAMES.items())
def test_a_name_shows_the_task_and_the_licence(name: str, task: str | None, tmp_path: Path) -> None:
    assert task_of_name(name, LabelMap(())) == task
    make_eomt(tmp_path)
    assert model_license(Checkpoint(tmp_path), name) == ("MIT" if name.startswith("tue-mps/") else UNKNOWN)
