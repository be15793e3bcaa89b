"""The checkpoint that comes with the package: transformers reads it and gives the same logits."""

import torch

from m2f_core.checkpoints.checkpoint import Checkpoint, load_checkpoint
from m2f_core.images.image_processor import ImageProcessor
from pipeline.scenes.draw import draw_scene
from pipeline.segment.checkpoint import stage_model

HELD_OUT_SEED = 2026


def test_transformers_gives_the_same_logits():
    from transformers import Mask2FormerForUniversalSegmentation

    path = stage_model("synthetic-scenes").path
    processor = ImageProcessor.from_preprocessor_config(Checkpoint(path).preprocessor_config, "reference")
    scenes = [draw_scene(HELD_OUT_SEED, index, 128, 128).pixels_HW3 for index in range(4)]
    pixels_B3HW = processor.to_batch(scenes, (128, 128))
    ours, theirs = load_checkpoint(path), Mask2FormerForUniversalSegmentation.from_pretrained(path).eval()
    with torch.inference_mode():
        found, expected = ours(pixels_B3HW), theirs(pixels_B3HW)
    for name in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-4)


def test_its_card_says_where_it_comes_from():
    card = (stage_model("synthetic-scenes").path / "README.md").read_text()
    assert "license: apache-2.0" in card and "--seed 1 " in card and f"--seed {HELD_OUT_SEED}" in card
