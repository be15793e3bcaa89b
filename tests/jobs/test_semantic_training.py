"""From label PNGs to a score, by the jobs alone: finetune.py, segment_bucket.py --task semantic, evaluate.py."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2f_core.checkpoints.checkpoint import save_checkpoint
from m2f_core.config.labels import Category, LabelMap
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.training.initial_weights import initial_model
from tests.support.coco_folders import CATEGORIES, write_coco_folder

CLASS_OF = {1: 0, 2: 1, 3: 2}  # segment -> class


def tiny_config(folder: Path) -> Path:
    """An architecture: random weights, for the classes of the data."""
    path = folder / "tiny.json"
    path.write_text(json.dumps(Mask2FormerConfig.tiny(train_num_points=256).to_dict()))
    return path


def of_other_classes(folder: Path) -> Path:
    """A checkpoint whose four classes are not those of the data, so that the training gives it a new class head."""
    categories = tuple(Category(i, 10 + i, f"sea {i}", isthing=i % 2 == 0) for i in range(4))
    names = {category.class_id: category.name for category in categories}
    model = initial_model(Mask2FormerConfig.tiny(id2label=names, train_num_points=256), seed=1)
    save_checkpoint(model, folder / "start", LabelMap(categories), "MIT")
    return folder / "start"


@pytest.mark.thorough
@pytest.mark.parametrize(("flag", "make_start"), [("--architecture", tiny_config), ("--model", of_other_classes)])
def test_a_model_learns_label_pngs_by_heart(flag, make_start, drivers, tmp_path):
    """Validation during the training, and the score of a run, are both above 0.95 on the images of the training."""
    folder = write_coco_folder(tmp_path / "set", [(64, 64), (64, 80), (48, 64), (64, 48)])
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in (folder.root / "panoptic").iterdir():
        ids_HW = np.asarray(Image.open(path))[..., 0]
        Image.fromarray(np.vectorize(CLASS_OF.get)(ids_HW).astype(np.uint8)).save(labels / path.name)
    names = tmp_path / "names.json"
    names.write_text(json.dumps({i: category["name"] for i, category in enumerate(CATEGORIES)}))

    trained = drivers.start(
        *("--images", folder.images, "--semantic-gt", labels, "--id2label", names, "--output", tmp_path / "trained"),
        *("--val-images", folder.images, "--val-gt", labels, flag, make_start(tmp_path)),
        *("--iterations", 300, "--batch-size", 4, "--crop-size", "64x64", "--min-scale", 0.8, "--max-scale", 1.2),
        *("--learning-rate", 2e-3, "--backbone-multiplier", 1, "--image-size", "64:96", "--save-every", 300),
        *("--log-every", 100, "--cpus-per-worker", 1),
        program="finetune",
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    )
    said = trained.finish()
    assert trained.returncode == 0, said
    rows = [json.loads(line) for line in (tmp_path / "trained" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["mIoU"] > 0.95 and "mIoU" in said, rows

    model = tmp_path / "trained" / "model"
    config = json.loads((model / "config.json").read_text())
    assert list(config["id2label"].values()) == [category["name"] for category in CATEGORIES]
    if flag == "--model":
        assert "the class head starts from random weights" in said, said
        assert config["license"] == "MIT", "of the weights that the training started from"
    segmented = drivers.start(
        *("--input", folder.images, "--output", tmp_path / "out", "--model", model, "--task", "semantic")
    )
    assert segmented.finish() is not None and segmented.returncode == 0, segmented.said()
    assert "WARNING" not in segmented.said(), "the model knows its task and its classes"
    report = tmp_path / "report.json"
    scored = drivers.start(
        *("--tables", tmp_path / "out", "--semantic-gt", labels, "--report", report), program="evaluate"
    )
    assert scored.finish() is not None and scored.returncode == 0, scored.said()
    assert json.loads(report.read_text())["semantic"]["mIoU"] > 0.95
