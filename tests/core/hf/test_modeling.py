"""The documented classes where there is no oracle: what is refused, what is kept, what the package exports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import m2f_core
from m2f_core.checkpoints.checkpoint import CheckpointError
from m2f_core.config.fields import ConfigError
from m2f_core.hf.config import Mask2FormerConfig, SwinConfig
from m2f_core.hf.modeling import Mask2FormerForUniversalSegmentation, Mask2FormerModel
from m2f_core.hf.outputs import Mask2FormerForUniversalSegmentationOutput
from tests.support.places import ROOT


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Mask2FormerForUniversalSegmentation:
    return Mask2FormerForUniversalSegmentation.from_pretrained(tiny_checkpoint)


def test_the_package_exports_the_documented_names_without_loading_torch() -> None:
    program = "import sys, m2f_core; print('torch' in sys.modules, dir(m2f_core)); m2f_core.Mask2FormerModel"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert result.stdout.startswith("False") and "Mask2FormerImageProcessor" in result.stdout
    with pytest.raises(AttributeError, match="no attribute 'Mask2FormerFeatureExtractor'"):
        m2f_core.Mask2FormerFeatureExtractor  # noqa: B018


def test_a_wrong_field_is_refused_by_name() -> None:
    for fields, named in (
        ({"num_queries": 0}, "num_queries"),
        ({"feature_strides": [4, 8, 16]}, "feature_strides"),
        ({"backbone_config": {"model_type": "convnext"}}, "convnext"),
        ({"id2label": {"a": "b"}}, "id2label"),
    ):
        with pytest.raises(ConfigError, match=named):
            Mask2FormerConfig(**fields)
    config = Mask2FormerConfig()
    config.num_attention_heads = 7
    with pytest.raises(ConfigError, match="num_attention_heads"):
        config.core()


def test_what_a_file_says_beside_the_fields_is_kept(tmp_path: Path) -> None:
    backbone = SwinConfig(embed_dim=48, image_size=224)
    config = Mask2FormerConfig(backbone_config=backbone, id2label={0: "a", 1: "a"}, dtype="float32", note="ours")
    assert config.backbone_config is backbone
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["note"] == "ours" and saved["backbone_config"]["image_size"] == 224
    assert Mask2FormerConfig.from_pretrained(tmp_path) == config
    assert Mask2FormerConfig.from_pretrained(tmp_path, num_queries=7).num_queries == 7


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    for cls in (Mask2FormerForUniversalSegmentation, Mask2FormerConfig, m2f_core.Mask2FormerImageProcessor):
        if cls is not m2f_core.Mask2FormerImageProcessor:
            with pytest.raises(CheckpointError, match=r"config.json: missing"):
                cls.from_pretrained(tmp_path / "absent")
        with pytest.raises(CheckpointError, match=r"nobody/nothing is not a folder .* cannot be loaded from the hub"):
            cls.from_pretrained("nobody/nothing", local_files_only=True)


def test_the_embedded_checkpoint_segments_through_the_documented_classes() -> None:
    folder = ROOT / "pipeline" / "models" / "synthetic-scenes"
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder)
    processor = m2f_core.Mask2FormerImageProcessor.from_pretrained(folder)
    assert not model.training and model.device.type == "cpu" and model.dtype == torch.float32
    assert model.num_parameters() == model.num_parameters(only_trainable=True) > 1e6
    with torch.inference_mode():
        output = model(**processor(torch.zeros(3, 64, 64, dtype=torch.uint8), return_tensors="pt"))
    [found] = processor.post_process_panoptic_segmentation(output, target_sizes=[(64, 64)], label_ids_to_fuse=set())
    assert found["segmentation"].shape == (64, 64)


def test_a_type_can_be_chosen(tiny_checkpoint: Path) -> None:
    for given in (torch.bfloat16, "bfloat16", "torch.bfloat16"):
        assert Mask2FormerModel.from_pretrained(tiny_checkpoint, dtype=given).dtype == torch.bfloat16
    assert Mask2FormerModel.from_pretrained(tiny_checkpoint, torch_dtype="auto").dtype == torch.float32


def test_a_model_from_a_configuration_depends_on_the_global_seed() -> None:
    config = Mask2FormerConfig(**tiny_fields())
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(Mask2FormerForUniversalSegmentation(config).class_predictor.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def tiny_fields() -> dict:
    core = m2f_core.config.mask2former.Mask2FormerConfig.tiny(num_labels=3)
    return {name: value for name, value in core.to_dict().items() if name not in ("architectures", "model_type")}


def test_the_gain_of_the_decoders_initial_weights() -> None:
    spreads = []
    for gain in (1.0, 0.25):
        torch.manual_seed(0)
        model = Mask2FormerForUniversalSegmentation(
            Mask2FormerConfig(**{**tiny_fields(), "init_xavier_std": gain, "enforce_input_projection": True})
        )
        decoder = model.model.transformer_module
        spreads.append([m.weight.std().item() for m in (decoder.layers[0].fc1, decoder.input_projections[0])])
    torch.testing.assert_close(torch.tensor(spreads[1]) * 4, torch.tensor(spreads[0]))


def test_saving_keeps_the_names_of_the_configuration(model, tmp_path: Path) -> None:
    old = model.config
    model.config = Mask2FormerConfig.from_dict(old.to_dict(), id2label={i: f"new {i}" for i in range(old.num_labels)})
    try:
        model.save_pretrained(tmp_path)
    finally:
        model.config = old
    again = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    assert again.config.id2label[0] == "new 0"
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(again.parameters(), model.parameters(), strict=True))
    again.config.num_labels = 99
    with pytest.raises(CheckpointError, match="99 classes"):
        again.save_pretrained(tmp_path)


def test_the_parts_can_be_frozen_by_the_documented_names(tiny_checkpoint: Path) -> None:
    model = Mask2FormerForUniversalSegmentation.from_pretrained(tiny_checkpoint)
    for parameter in model.model.pixel_level_module.encoder.parameters():
        parameter.requires_grad = False
    assert model.num_parameters(only_trainable=True) < model.num_parameters()


def test_an_output_is_a_dictionary_and_a_tuple() -> None:
    output = Mask2FormerForUniversalSegmentationOutput(class_queries_logits=torch.ones(1), masks_queries_logits=None)
    assert list(output) == ["class_queries_logits"] and output.loss is None
    output["loss"] = torch.zeros(1)
    assert output.loss is output["loss"] and output[1] is output.loss
    output.loss = torch.ones(1)
    assert output["loss"] is output.loss


def test_torch_export_takes_the_model() -> None:
    """Exporting takes seconds a layer: one of each kind is enough."""
    torch.manual_seed(0)
    config = Mask2FormerConfig(**{**tiny_fields(), "encoder_layers": 1, "decoder_layers": 2})
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        program = torch.export.export(model, (torch.zeros(1, 3, 64, 64),))
        output, expected = program.module()(torch.ones(1, 3, 64, 64)), model(torch.ones(1, 3, 64, 64))
    assert type(output) is type(expected)
    torch.testing.assert_close(output.masks_queries_logits, expected.masks_queries_logits, rtol=0, atol=1e-4)
