"""What a config.json says means to us what transformers takes from the same file."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
from pathlib import Path

import pytest
import torch
from transformers import Mask2FormerConfig as TheirConfig
from transformers import Mask2FormerForUniversalSegmentation
from transformers.activations import ACT2FN

from m2f_core.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.layers.activations import ACTIVATIONS
from m2f_core.model.for_inference import prepare_for_inference
from tests.support.seeded_model import seeded_model

WITH_WEIGHTS = {"prelu", "xielu"}


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"num_labels": 3},
        {"id2label": None},
        {"id2label": {"0": "a", "1": "b"}},
        {"id2label": {"1": "a", "2": "b", "3": "c"}},
        {"id2label": {"0": "a", "7": "b", "255": "void"}},
        {"id2label": {"0": "a"}, "num_labels": 4},
        {"id2label": {"0": "a", "1": "b"}, "num_labels": 2},
        {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "num_labels": 5},
        {"label2id": {"x": 0, "y": 1, "z": 2}},
    ],
    ids=str,
)
def test_the_number_of_classes_and_the_names_of_those_that_have_one(labels: dict, tmp_path: Path) -> None:
    content = {"model_type": "mask2former", **labels}
    (tmp_path / "config.json").write_text(json.dumps(content))
    theirs, ours = TheirConfig.from_pretrained(tmp_path), Mask2FormerConfig.from_dict(content)
    assert ours.num_labels == theirs.num_labels
    for class_id, name in ours.id2label.items():
        assert name == theirs.id2label.get(class_id, f"LABEL_{class_id}")


def test_every_activation_without_weights_is_there() -> None:
    assert set(ACTIVATIONS) == set(ACT2FN) - WITH_WEIGHTS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_their_values(name: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([0.0, -0.0, 1e-8, 100.0, -100.0])])
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("name", ["silu", "gelu_new", "relu2"])
def test_a_decoder_with_another_activation(name: str, prepared: bool, tmp_path: Path) -> None:
    """Also as the job runs it, with packed layers."""
    config = Mask2FormerConfig.tiny(activation_function=name)
    save_checkpoint(seeded_model(config, seed=3), tmp_path)
    ours, theirs = load_checkpoint(tmp_path), Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path).eval()
    if prepared:
        prepare_for_inference(ours, torch.device("cpu"), "fp32")
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = ours(pixels), theirs(pixels)
    torch.testing.assert_close(found.class_queries_logits, expected.class_queries_logits, rtol=0, atol=5e-4)
    torch.testing.assert_close(found.masks_queries_logits, expected.masks_queries_logits, rtol=0, atol=5e-4)
