"""`jobs/finetune.py` with models of other families: from random weights, from a checkpoint, and what it writes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from m2f_core.checkpoints.checkpoint import load_checkpoint
from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.families.registry import family_of
from tests.support.coco_folders import write_coco_folder
from tests.support.seeded_eomt import tiny_config

pytestmark = pytest.mark.thorough
THEIRS = {"maskformer": "MaskFormerForInstanceSegmentation", "eomt": "EomtForUniversalSegmentation"}
CONFIGS = {"maskformer": replace(MaskFormerConfig.tiny(), use_auxiliary_loss=True), "eomt": tiny_config()}


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_is_trained_and_trained_on(family: str, drivers, ray_session, tmp_path: Path) -> None:
    """Two trainings, the second from the model of the first; transformers reads both models."""
    import transformers

    data = write_coco_folder(tmp_path / "set", [(64, 64), (64, 80), (48, 64), (64, 48)])
    config = CONFIGS[family]
    (tmp_path / "tiny.json").write_text(json.dumps(config.to_dict()))
    common = [f"--images={data.images}", f"--panoptic-gt={data.panoptic_gt}", "--iterations=4", "--save-every=2"]
    common += [f"--val-images={data.images}", f"--val-gt={data.panoptic_gt}", "--batch-size=2", "--cpus-per-worker=1"]
    common += ["--crop-size=64x64", *(() if family == "eomt" else ("--image-size=64:96",))]
    cluster = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    start = f"--architecture={tmp_path / 'tiny.json'}"
    for name in ("first", "second"):
        output = tmp_path / name
        driver = drivers.start(*common, start, f"--output={output}", program="finetune", **cluster)
        said = driver.finish()
        assert driver.returncode == 0, said
        assert "4/4  loss" in said and "PQ" in said
        assert "class head starts from random weights" not in said
        start = f"--model={output / 'model'}"
        model = load_checkpoint(output / "model")
        assert family_of(model.config.to_dict()) is family_of(config.to_dict())
        theirs = getattr(transformers, THEIRS[family])
        pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected, found = theirs.from_pretrained(output / "model").eval()(pixels), model(pixels)
        for name in ("class_queries_logits", "masks_queries_logits"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-3)
        if family == "eomt":
            assert model.attn_mask_probs.tolist() == [0.0, 0.0], "a trained model does without masks"
