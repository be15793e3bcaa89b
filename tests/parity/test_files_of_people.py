"""config.json and preprocessor_config.json as people and tools write them: accepted, or refused where transformers
refuses too. What is accepted means the same: number of classes, names, size of an image.
"""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m2f_core.config.fields import ConfigError
from m2f_core.config.mask2former import Mask2FormerConfig, ResNetConfig
from m2f_core.images.image_processor import ImageProcessor

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of these tests")

from transformers.models.mask2former.image_processing_pil_mask2former import (  # noqa: E402
    Mask2FormerImageProcessorPil,
)

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "small": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
    "large": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
}
NUM_CLASSES = {"coco-panoptic": 133, "coco-instance": 80, "ade-semantic": 150, "ade-panoptic": 150}
NUM_CLASSES |= {"cityscapes-semantic": 19, "cityscapes-instance": 8, "cityscapes-panoptic": 19, "mapillary-vistas": 65}


def published(backbone: str, num_labels: int) -> dict[str, Any]:
    """A config.json as on the hub: written by a version of 2022, with fields that later versions dropped."""
    names = {str(i): f"class {i}" for i in range(num_labels)}
    return {
        "activation_function": "relu",
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "backbone_config": {
            "_name_or_path": "",
            "architectures": ["SwinForImageClassification"],
            **BACKBONES[backbone],
            "drop_path_rate": 0.3,
            "encoder_stride": 32,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "image_size": 384,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-05,
            "mlp_ratio": 4.0,
            "model_type": "swin",
            "num_channels": 3,
            "out_features": STAGES,
            "path_norm": True,
            "patch_size": 4,
            "qkv_bias": True,
            "stage_names": ["stem", *STAGES],
            "use_absolute_embeddings": False,
        },
        "class_weight": 2.0,
        "common_stride": 4,
        "decoder_layers": 10,
        "dice_weight": 5.0,
        "dim_feedforward": 2048,
        "dropout": 0.0,
        "encoder_feedforward_dim": 1024,
        "encoder_layers": 6,
        "enforce_input_proj": False,
        "enforce_input_projection": False,
        "feature_size": 256,
        "feature_strides": [4, 8, 16, 32],
        "hidden_dim": 256,
        "id2label": names,
        "ignore_value": 255,
        "importance_sample_ratio": 0.75,
        "init_std": 0.02,
        "init_xavier_std": 1.0,
        "label2id": {name: int(i) for i, name in names.items()},
        "mask_feature_size": 256,
        "mask_weight": 5.0,
        "model_type": "mask2former",
        "no_object_weight": 0.1,
        "num_attention_heads": 8,
        "num_hidden_layers": 10,
        "num_queries": 200 if backbone == "large" else 100,
        "output_auxiliary_logits": None,
        "oversample_ratio": 3.0,
        "pre_norm": False,
        "torch_dtype": "float32",
        "train_num_points": 12544,
        "transformers_version": "4.26.0.dev0",
        "use_auxiliary_loss": True,
    }


def read_both(config: dict[str, Any]) -> tuple[Mask2FormerConfig | None, Any]:
    """Ours and theirs; None where it is refused."""
    try:
        theirs = transformers.Mask2FormerConfig.from_dict(copy.deepcopy(config))
        transformers.AutoConfig.for_model("mask2former")
    except Exception:
        theirs = None
    try:
        return Mask2FormerConfig.from_dict(config), theirs
    except ValueError:
        return None, theirs


@pytest.mark.parametrize("backbone", BACKBONES)
def test_published_configurations(backbone: str) -> None:
    """Every size with the classes of every data set, more than the 29 that were published."""
    for num_labels in NUM_CLASSES.values():
        ours, theirs = read_both(published(backbone, num_labels))
        assert ours is not None and theirs is not None
        assert ours.num_labels == theirs.num_labels == num_labels and ours.num_queries == theirs.num_queries
        for field in ("embed_dim", "depths", "num_heads", "window_size", "drop_path_rate"):
            assert np.array_equal(getattr(ours.backbone_config, field), getattr(theirs.backbone_config, field))


SWIN = {"model_type": "swin", **BACKBONES["tiny"], "out_features": STAGES}
COMMUNITY: dict[str, dict[str, Any]] = {
    "as saved by version 5": {"dtype": "float32", "torch_dtype": None},
    "with a task": {"finetuning_task": "panoptic", "problem_type": None},
    "for the pipeline": {"_name_or_path": "me/mine", "custom_pipelines": {}},
    "int names": {"id2label": {"0": 7, "1": 8}, "label2id": None},
    "gaps": {"id2label": {"0": "a", "5": "b", "255": "void"}},
    "from 1": {"id2label": {str(i): str(i) for i in range(1, 25)}},
    "fewer names than num_labels": {"id2label": {"0": "a"}, "num_labels": 3},
    "no names": {"id2label": None, "label2id": None, "num_labels": 4},
    "one class": {"id2label": {"0": "crack"}, "label2id": {"crack": 0}},
    "names in Unicode": {"id2label": {"0": "道路", "1": "ciel été"}},
    "equal names": {"id2label": {"0": "x", "1": "x"}, "label2id": {"x": 1}},
    "without output settings": {"output_auxiliary_logits": False, "output_hidden_states": True, "return_dict": True},
    "other weights": {"no_object_weight": 0.0, "class_weight": 1, "mask_weight": 20, "dice_weight": 1},
    "few points": {"train_num_points": 1000, "oversample_ratio": 2, "importance_sample_ratio": 1},
    "more queries": {"num_queries": 300},
    "a shallow decoder": {"decoder_layers": 4, "num_hidden_layers": 4},
    "a small model": {"feature_size": 128, "mask_feature_size": 128, "hidden_dim": 128},
    "wide": {"hidden_dim": 512, "dim_feedforward": 4096},
    "silu": {"activation_function": "silu"},
    "gelu": {"activation_function": "gelu_new"},
    "pre-norm": {"pre_norm": True, "enforce_input_projection": True},
    "dropout": {"dropout": 0.1},
    "ignore 0": {"ignore_value": 0},
    "no auxiliary loss": {"use_auxiliary_loss": False},
    "quantisation": {"quantization_config": None},
    "pruned": {"pruned_heads": {}},
    "swin by its type alone": {"backbone_config": {"model_type": "swin", "out_features": STAGES}},
    "swin of version 5": {"backbone_config": {**SWIN, "out_indices": [1, 2, 3, 4], "dtype": "float32"}},
    "patches of two numbers": {"backbone_config": {**SWIN, "patch_size": 4, "image_size": 224}},
    "no drop path": {"backbone_config": {**SWIN, "drop_path_rate": 0.0}},
    "another window": {"backbone_config": {**SWIN, "window_size": 8}},
    "resnet 50": {"backbone_config": {"model_type": "resnet", "out_features": STAGES}},
    "resnet 18": {
        "backbone_config": {
            "model_type": "resnet",
            "layer_type": "basic",
            "depths": [2, 2, 2, 2],
            "hidden_sizes": [64, 128, 256, 512],
            "out_features": STAGES,
        }
    },
    "negative queries": {"num_queries": "many"},
    "a list of names": {"id2label": ["a", "b"]},
    "an unknown activation type": {"activation_function": 3},
    "text for a number": {"hidden_dim": "256"},
    "a wrong backbone": {"backbone_config": {"model_type": "no such model"}},
    "text for a flag": {"pre_norm": "yes"},
    "a number for names": {"id2label": 3},
}


@pytest.mark.parametrize("name", COMMUNITY)
def test_community_configurations(name: str) -> None:
    ours, theirs = read_both({**published("tiny", 3), **COMMUNITY[name]})
    assert (ours is None) <= (theirs is None), f"refused: {name}"
    if ours is not None and theirs is not None:
        assert ours.num_labels == theirs.num_labels
        for field in ("num_queries", "hidden_dim", "decoder_layers", "dropout", "no_object_weight", "pre_norm"):
            assert getattr(ours, field) == getattr(theirs, field)


PREPROCESSORS: dict[str, dict[str, Any]] = {
    "published": {
        "size": {"height": 384, "width": 384},
        "size_divisor": 32,
        "ignore_index": 255,
        "reduce_labels": False,
    },
    "published for COCO": {"size": {"shortest_edge": 800, "longest_edge": 1333}, "max_size": 1333},
    "version 4.25": {"size": 384, "max_size": 640, "feature_extractor_type": "MaskFormerFeatureExtractor"},
    "squares": {"size": {"height": 512, "width": 512}},
    "a list": {"size": [256, 320]},
    "lim": {"size": {"max_height": 300, "max_width": 200}},
    "reduced": {"size": {"height": 64, "width": 64}, "do_reduce_labels": True, "ignore_index": 255},
    "not resized": {"do_resize": False},
    "nothing": {},
    "not normalised": {"size": {"height": 64, "width": 64}, "do_normalize": False},
    "raw": {"do_resize": False, "do_rescale": False, "do_normalize": False},
    "divisor 16": {"size": {"shortest_edge": 100, "longest_edge": 200}, "size_divisor": 16},
    "divisor 0": {"size": {"shortest_edge": 100, "longest_edge": 200}, "size_divisor": 0},
    "padded": {"size": {"height": 64, "width": 64}, "pad_size": {"height": 96, "width": 128}},
    "bicubic": {"size": {"height": 64, "width": 64}, "resample": 3},
    "other numbers": {"size": {"height": 64, "width": 64}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    "num_labels": {"size": {"height": 64, "width": 64}, "num_labels": 150, "processor_class": None},
    "text": {"size": "large"},
    "an empty size": {"size": {}},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PREPROCESSORS)
def test_preprocessor_files(name: str) -> None:
    """In hf mode, the network's input has transformers' size; reference mode takes every file that hf mode takes."""
    config = PREPROCESSORS[name]
    image = Image.fromarray(np.zeros((90, 140, 3), np.uint8))
    try:
        theirs = Mask2FormerImageProcessorPil(**copy.deepcopy(config))(image, return_tensors="np")["pixel_values"].shape
    except Exception:
        theirs = None
    for mode in ("hf", "reference"):
        try:
            ours = ImageProcessor.from_preprocessor_config(config, mode, None).geometry(90, 140).padded_hw
        except ValueError:
            ours = None
        assert (ours is None) <= (theirs is None), f"refused in {mode} mode"
        assert mode == "reference" or ours is None or theirs is None or ours == theirs[2:]


def test_a_backbone_by_its_name_is_that_of_its_file() -> None:
    for name, fields in (
        ("microsoft/swin-tiny-patch4-window7-224", BACKBONES["tiny"]),
        ("microsoft/swin-small-patch4-window7-224", BACKBONES["small"]),
        ("microsoft/swin-base-patch4-window12-384-in22k", BACKBONES["base"]),
        ("microsoft/swin-large-patch4-window12-384-in22k", BACKBONES["large"]),
    ):
        config = {**published("tiny", 3), "backbone": name, "backbone_config": None, "use_timm_backbone": False}
        backbone = Mask2FormerConfig.from_dict(config).backbone_config
        assert all(np.array_equal(getattr(backbone, field), value) for field, value in fields.items())
    resnet = {**published("tiny", 3), "backbone": "microsoft/resnet-50", "backbone_config": None}
    assert Mask2FormerConfig.from_dict(resnet).backbone_config == ResNetConfig()
    for changes in ({"backbone": "me/mine"}, {"backbone": "microsoft/swin-huge-patch4-window7-224"}):
        with pytest.raises(ConfigError, match="write out its backbone_config"):
            Mask2FormerConfig.from_dict({**resnet, **changes})
    with pytest.raises(ConfigError, match="resnet50"):
        Mask2FormerConfig.from_dict({**resnet, "backbone": "resnet50", "use_timm_backbone": True})


def test_there_are_enough() -> None:
    assert len(COMMUNITY) + len(PREPROCESSORS) >= 40 and len(list(itertools.product(BACKBONES, NUM_CLASSES))) >= 29
