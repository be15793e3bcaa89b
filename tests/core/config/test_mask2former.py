import dataclasses
import json
import subprocess
import sys

import pytest

from m2f_core.config.class_names import label_warnings
from m2f_core.config.fields import ACTIVATIONS, ConfigError
from m2f_core.config.mask2former import Mask2FormerConfig, ResNetConfig, SwinConfig

VARIANTS = ["swin_tiny", "swin_small", "swin_base", "swin_large", "resnet50", "resnet101", "tiny"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_json_round_trip(variant: str) -> None:
    config = getattr(Mask2FormerConfig, variant)(id2label={0: "cat", 1: "sky"}, num_queries=7)
    assert (config.num_labels, config.num_queries) == (2, 7)
    assert Mask2FormerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_training_fields_are_read_and_written() -> None:
    """Under transformers' names; whole numbers become what transformers takes for numbers."""
    given = {
        "dropout": 0.1,
        "ignore_value": 0,
        "no_object_weight": 1,
        "class_weight": 3,
        "mask_weight": 0.5,
        "dice_weight": 0,
        "train_num_points": 112,
        "oversample_ratio": 2,
        "importance_sample_ratio": 1,
        "init_std": 0.01,
        "init_xavier_std": 2,
        "use_auxiliary_loss": False,
        "output_auxiliary_logits": True,
    }
    config = Mask2FormerConfig.from_dict({"model_type": "mask2former", **given})
    written = json.loads(json.dumps(config.to_dict()))
    assert {name: written[name] for name in given} == given
    assert all(type(written[name]) is float for name in ("class_weight", "dice_weight", "oversample_ratio"))
    assert Mask2FormerConfig.from_dict(written) == config
    assert Mask2FormerConfig.tiny(train_num_points=112, dice_weight=1.0).train_num_points == 112


def test_published_numbers() -> None:
    large = Mask2FormerConfig.swin_large()
    assert large.backbone_config.feature_channels == (192, 384, 768, 1536)
    assert large.backbone_config.window_size == 12
    assert (large.num_queries, large.num_labels) == (200, 133)
    assert Mask2FormerConfig.swin_tiny().backbone_config == SwinConfig(
        embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7, drop_path_rate=0.3
    )
    deep = Mask2FormerConfig.resnet101().backbone_config
    assert deep == ResNetConfig(hidden_sizes=(256, 512, 1024, 2048), depths=(3, 4, 23, 3))
    assert deep.feature_channels == (256, 512, 1024, 2048)
    assert deep.feature_strides == (4, 8, 16, 32)


def test_unknown_keys_are_ignored_and_missing_ones_have_transformers_defaults() -> None:
    config = Mask2FormerConfig.from_dict({"model_type": "mask2former", "enforce_input_proj": True, "no_such": [1]})
    assert config == Mask2FormerConfig()
    assert config.backbone_config.depths == (2, 2, 18, 2)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_legacy_spellings() -> None:
    """Names that older files have for the same fields; nulls, which they have for absent ones."""
    config = Mask2FormerConfig.from_dict(
        {
            "model_type": "mask2former",
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_labels": 3,
            "backbone": None,
            "output_auxiliary_logits": None,
            "backbone_config": {
                "model_type": "swin",
                "patch_size": [4, 4],
                "depths": [1, 1, 1, 1],
                "out_features": None,
            },
        }
    )
    assert (config.hidden_dim, config.decoder_layers, config.num_labels) == (128, 4, 3)
    assert config.backbone_config == SwinConfig(depths=(1, 1, 1, 1))


def test_classes_are_ordered_by_number_not_by_text() -> None:
    names = {str(i): f"name {i}" for i in sorted(range(12), key=str)}
    config = Mask2FormerConfig.from_dict({"model_type": "mask2former", "id2label": names})
    assert list(config.id2label) == list(range(12))


@pytest.mark.parametrize(
    ("content", "names", "warned"),
    [
        (
            {"id2label": {"1": "a", "2": "b"}},
            ["LABEL_0", "a"],
            ["entries 2 name no class", "classes 0 are"],
        ),
        ({"id2label": {"0": "a", "255": "void"}}, ["a", "LABEL_1"], ["entries 255 name", "classes 1 are"]),
        (
            {"id2label": {str(i): f"n{i}" for i in range(3, 12)}},
            None,
            ["entries 9, 10, 11 name", "0, 1, 2 are"],
        ),
        ({"id2label": {str(i + 100): "x" for i in range(9)}}, None, ["entries 100, 101, 102, 103, ... name"]),
        ({"id2label": {"0": "a"}, "num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"], ["num_labels 3", "1 entries"]),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 2}, ["a", "b"], []),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, ["a", "b", "a"], ["'a' to 0, 2; only"]),
        ({"num_labels": 1}, ["LABEL_0"], []),
        ({}, ["LABEL_0", "LABEL_1"], []),
        ({"id2label": None}, ["LABEL_0", "LABEL_1"], []),
    ],
)
def test_labels_are_counted(content: dict, names: list[str] | None, warned: list[str]) -> None:
    read = Mask2FormerConfig.from_dict({"model_type": "mask2former", **content}).id2label
    assert list(read) == list(range(len(read)))
    assert names is None or list(read.values()) == names
    warnings = label_warnings(content)
    assert len(warnings) == bool(warned)
    assert all(words in warnings[0] for words in warned), warnings


def test_activations_are_the_names_of_the_config() -> None:
    from m2f_core.layers import activations

    assert sorted(ACTIVATIONS) == sorted(activations.ACTIVATIONS)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": "maskformer"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"backbone_config": {"model_type": "convnext"}}, "backbone_config.model_type"),
        ({"backbone_config": "swin"}, "backbone_config"),
        ({"backbone": "microsoft/swin-tiny"}, "backbone"),
        ({"backbone_config": {"model_type": "swin", "use_absolute_embeddings": True}}, "use_absolute_embeddings"),
        ({"backbone_config": {"model_type": "swin", "out_features": ["stage4"]}}, "out_features"),
        ({"backbone_config": {"model_type": "swin", "depths": [2, 2, 6]}}, "depths"),
        ({"backbone_config": {"model_type": "swin", "depths": 2}}, "depths"),
        ({"backbone_config": {"model_type": "swin", "num_heads": [5, 6, 12, 24]}}, "num_heads"),
        ({"backbone_config": {"model_type": "swin", "num_channels": 4}}, "num_channels"),
        ({"backbone_config": {"model_type": "swin", "patch_size": [4, 2]}}, "patch_size"),
        ({"backbone_config": {"model_type": "swin", "patch_size": 8}}, "feature_strides"),
        ({"backbone_config": {"model_type": "swin", "hidden_act": "xielu"}}, "hidden_act"),
        ({"backbone_config": {"model_type": "swin", "mlp_ratio": -1}}, "mlp_ratio"),
        ({"backbone_config": {"model_type": "swin", "qkv_bias": "yes"}}, "qkv_bias"),
        ({"backbone_config": {"model_type": "swin", "drop_path_rate": 1}}, "drop_path_rate"),
        ({"backbone_config": {"model_type": "swin", "drop_path_rate": "0.1"}}, "drop_path_rate"),
        ({"backbone_config": {"model_type": "resnet", "layer_type": "wide"}}, "layer_type"),
        ({"backbone_config": {"model_type": "resnet", "downsample_in_first_stage": True}}, "downsample_in_first_stage"),
        ({"backbone_config": {"model_type": "resnet", "downsample_in_bottleneck": 1}}, "downsample_in_bottleneck"),
        ({"backbone_config": {"model_type": "resnet", "depths": [3, 4, 6]}}, "depths"),
        ({"backbone_config": {"model_type": "resnet", "hidden_sizes": [256, 512, 1024, 2047]}}, "ResNet stage 4"),
        ({"backbone_config": {"model_type": "resnet", "embedding_size": 0}}, "embedding_size"),
        ({"backbone_config": {"model_type": "resnet", "num_channels": 1}}, "num_channels"),
        ({"backbone_config": {"model_type": "resnet", "hidden_act": "prelu"}}, "hidden_act"),
        ({"backbone_config": {"model_type": "resnet", "out_features": ["stage4"]}}, "out_features"),
        ({"num_queries": 0}, "num_queries"),
        ({"num_queries": True}, "num_queries"),
        ({"num_queries": 10.5}, "num_queries"),
        ({"decoder_layers": -1}, "decoder_layers"),
        ({"hidden_dim": 100}, "hidden_dim"),
        ({"feature_size": 80}, "feature_size"),
        ({"pre_norm": "no"}, "pre_norm"),
        ({"common_stride": 8}, "common_stride"),
        ({"feature_strides": [4, 8, 16]}, "feature_strides"),
        ({"activation_function": "prelu"}, "activation_function"),
        ({"activation_function": ["relu"]}, "activation_function"),
        ({"train_num_points": 0}, "train_num_points"),
        ({"train_num_points": 112.5}, "train_num_points"),
        ({"class_weight": -1}, "class_weight"),
        ({"mask_weight": "5"}, "mask_weight"),
        ({"dice_weight": float("nan")}, "dice_weight"),
        ({"class_weight": 0, "mask_weight": 0, "dice_weight": 0}, "class_weight, mask_weight, dice_weight"),
        ({"no_object_weight": -0.1}, "no_object_weight"),
        ({"oversample_ratio": 0.5}, "oversample_ratio"),
        ({"oversample_ratio": float("inf")}, "oversample_ratio"),
        ({"importance_sample_ratio": 1.5}, "importance_sample_ratio"),
        ({"importance_sample_ratio": True}, "importance_sample_ratio"),
        ({"dropout": 2}, "dropout"),
        ({"init_std": -0.1}, "init_std"),
        ({"init_xavier_std": [1]}, "init_xavier_std"),
        ({"ignore_value": 0.5}, "ignore_value"),
        ({"use_auxiliary_loss": 1}, "use_auxiliary_loss"),
        ({"output_auxiliary_logits": "no"}, "output_auxiliary_logits"),
        ({"id2label": {"a": "0"}}, "id2label"),
        ({"id2label": {}}, "id2label"),
        ({"id2label": ["a"]}, "id2label"),
        ({"id2label": {"0": "a", None: "b"}}, "id2label"),
        ({"num_labels": -1}, "num_labels"),
        ({"num_labels": "3", "id2label": {"0": "a"}}, "num_labels"),
    ],
    ids=str,
)
def test_nonsense_is_refused_by_the_name_of_the_field(change: dict, field: str) -> None:
    with pytest.raises(ConfigError) as error:
        Mask2FormerConfig.from_dict({"model_type": "mask2former", **change})
    message = str(error.value)
    assert field in message
    assert "\n" not in message


def test_a_config_is_frozen_and_checked_when_made_by_hand() -> None:
    config = Mask2FormerConfig.tiny()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_queries = 3  # type: ignore[misc]
    with pytest.raises(ConfigError, match="num_queries"):
        dataclasses.replace(config, num_queries=-3)
    assert hash(config) == hash(Mask2FormerConfig.tiny())


def test_files_can_be_read_without_torch() -> None:
    """The driver of a run reads configuration, labels and hash only; importing torch would cost it seconds."""
    modules = "m2f_core.config.mask2former, m2f_core.config.labels, m2f_core.checkpoints.checkpoint"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
