"""Each script of docs/tutorials under both libraries, with only its import line changed: the same output."""

import contextlib
import io
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2f_core.checkpoints.checkpoint import save_checkpoint
from m2f_core.config.mask2former import Mask2FormerConfig
from tests.support.coco_folders import CATEGORIES, CocoFolder, write_coco_folder
from tests.support.places import ROOT
from tests.support.seeded_model import seeded_model

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of these tests")

from transformers.models.mask2former.image_processing_pil_mask2former import (  # noqa: E402
    Mask2FormerImageProcessorPil,
)

TUTORIALS = ROOT / "docs" / "tutorials"
OURS = "from m2f_core import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor\n"
# transformers' name for its processor without torchvision ends in Pil.
THEIRS = (
    "from transformers import Mask2FormerForUniversalSegmentation; from transformers.models.mask2former"
    ".image_processing_pil_mask2former import Mask2FormerImageProcessorPil as Mask2FormerImageProcessor\n"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that segment, with the classes of the data."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(seeded_model(Mask2FormerConfig.tiny(len(CATEGORIES), train_num_points=200), seed=0), folder)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoFolder:
    """Four images with panoptic, semantic and instance ground truth."""
    folder = write_coco_folder(tmp_path_factory.mktemp("data") / "set", [(48, 64), (64, 48), (64, 64), (40, 70)])
    for name in ("labels", "maps"):
        (folder.root / name).mkdir()
    for path in (folder.root / "panoptic").iterdir():
        ids_HW = np.asarray(Image.open(path))[..., 0]
        Image.fromarray(ids_HW - 1).save(folder.root / "labels" / path.name)
        objects_HW = np.where(ids_HW == 1, 0, ids_HW)
        Image.fromarray(np.stack([ids_HW - 1, objects_HW, 0 * ids_HW], axis=-1)).save(folder.root / "maps" / path.name)
    return folder


def run(script: str, imports: str, folder: Path, *args: object) -> str:
    text = (TUTORIALS / script).read_text()
    assert text.count(OURS) == 1
    path = folder / script
    path.write_text(text.replace(OURS, imports))
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", [script, *map(str, args)])
        runpy.run_path(str(path), run_name="__main__")  # both libraries are imported already, which takes seconds
    return said.getvalue()


def test_inference(checkpoint, data, tmp_path):
    """The three post-processings: maps and segments are equal, and so are the pictures."""
    said = []
    for name, imports in (("ours", OURS), ("theirs", THEIRS)):
        (tmp_path / name).mkdir()
        image = data.images / "001.png"
        said.append(run("inference.py", imports, tmp_path / name, checkpoint, image, tmp_path / name / "out"))
    ours, theirs = ([json.loads(line) for line in text.splitlines()] for text in said)
    assert [line["task"] for line in ours] == ["semantic", "instance", "panoptic"]
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine["pixels"] == expected["pixels"] and mine["segments"]
        for one, other in zip(mine["segments"], expected["segments"], strict=True):
            assert one.pop("score", 0) == pytest.approx(other.pop("score", 0), abs=2e-6)
            assert one == other
        pictures = [
            np.asarray(Image.open(tmp_path / name / "out" / f"{mine['task']}.png")) for name in ("ours", "theirs")
        ]
        np.testing.assert_array_equal(*pictures)
        assert pictures[0].shape[0] > 48, "there is a legend"


@pytest.mark.parametrize(
    ("script", "gt"),
    [
        ("finetune_semantic.py", "labels"),
        pytest.param("finetune_instance.py", "maps", marks=pytest.mark.thorough),
        pytest.param("finetune_panoptic.py", "panoptic.json", marks=pytest.mark.thorough),
    ],
)
def test_training(checkpoint, data, tmp_path, script, gt):
    """Losses agree while rounding has not grown, and each library loads what the other has written."""
    losses = []
    for name, imports in (("ours", OURS), ("theirs", THEIRS)):
        (tmp_path / name).mkdir()
        output = tmp_path / name / "trained"
        said = run(script, imports, tmp_path / name, checkpoint, data.images, data.root / gt, output, 2)
        losses.append([float(loss) for loss in re.findall(r"loss ([\d.]+)", said)])
        for library in (transformers, __import__("m2f_core")):
            assert library.Mask2FormerForUniversalSegmentation.from_pretrained(output).config.num_labels == 3
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-6)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_every_script_has_a_page_and_a_test():
    scripts = {path.name for path in TUTORIALS.glob("*.py")}
    pages = "".join(path.read_text() for path in TUTORIALS.glob("*.md"))
    assert scripts and all(
        f"]({script})" in pages and f'"{script}"' in Path(__file__).read_text() for script in scripts
    )
