"""What a training starts from: flags replace what a checkpoint or an architecture says about sampled points."""

from dataclasses import replace

import pytest
import torch

from m2f_core.checkpoint import CONFIG_FILE, save_checkpoint
from m2f_core.config import Mask2FormerConfig
from m2f_core.initial_weights import initial_model
from m2f_core.labels import LabelMap
from pipeline.finetune_config import FinetuneSettings
from pipeline.starting_model import ARCHITECTURES, check_start, starting_model

LABELS = LabelMap.from_coco_categories([{"id": 7, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    config = Mask2FormerConfig.tiny(id2label={0: "cat", 1: "sky"})
    model = initial_model(replace(config, train_num_points=77, importance_sample_ratio=0.5), seed=3)
    save_checkpoint(model, folder, LABELS)
    return folder, model


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, (77, 0.5)),
        ({"train_num_points": 99}, (99, 0.5)),
        ({"importance_sample_ratio": 0.0}, (77, 0.0)),
    ],
)
@pytest.mark.parametrize("kind", ["model", "architecture"])
def test_sampled_points_are_those_of_the_flags_else_of_the_start(checkpoint, kind, flags, expected):
    folder, saved = checkpoint
    start = {"model": str(folder)} if kind == "model" else {"architecture": str(folder / CONFIG_FILE)}
    settings = FinetuneSettings(images="images", output="out", panoptic_gt="panoptic.json", seed=3, **start, **flags)

    model, _ = starting_model(settings, LABELS)

    assert (model.config.train_num_points, model.config.importance_sample_ratio) == expected
    assert (model.criterion.num_points, model.criterion.importance_sample_ratio) == expected
    for name, weight in saved.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_named_architectures_take_the_flags_too(name):
    points = {"train_num_points": 99, "importance_sample_ratio": 0.25}
    check_start(FinetuneSettings(images="i", output="o", panoptic_gt="p", architecture=name, **points))
