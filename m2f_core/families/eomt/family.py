"""EoMT: Kerssies et al., "Your ViT is Secretly an Image Segmentation Model" (2025), on a DINOv2 and on a DINOv3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from m2f_core.config.eomt import EomtConfig, PlainTransformerConfig
from m2f_core.config.eomt_dinov3 import EomtDinov3Config
from m2f_core.config.fields import ConfigError
from m2f_core.config.labels import Task
from m2f_core.families.eomt.names import IGNORED, dinov3_names, hugging_face_names
from m2f_core.families.family import Family, TrainingParts, WeightNames
from m2f_core.inference.settings import FamilyRules

if TYPE_CHECKING:
    from m2f_core.images.image_processor import ImageProcessor
    from m2f_core.images.image_size import ImageSize
    from m2f_core.losses.loss import Criterion
    from m2f_core.model.eomt.eomt import Eomt


def _build_model(config: PlainTransformerConfig) -> Eomt:
    from m2f_core.model.eomt.eomt import build_model

    return build_model(config)


def _image_processor(
    config: PlainTransformerConfig,
    preprocessor: Mapping[str, Any] | None,
    mode: str,
    image_size: ImageSize | None,
    task: Task,
) -> ImageProcessor:
    from m2f_core.images.square import SquareProcessor

    return SquareProcessor.read(preprocessor, mode, image_size, config.image_size, cuts=task == "semantic")


def _initial_model(config: PlainTransformerConfig, seed: int) -> Eomt:
    from m2f_core.training.eomt_weights import initial_eomt

    return initial_eomt(config, seed)


def _criterion(config: PlainTransformerConfig) -> Criterion:
    from m2f_core.model.eomt.eomt import build_criterion

    return build_criterion(config)


def _check_training(config: PlainTransformerConfig) -> None:
    from m2f_core.images.image_processor import NETWORK_STRIDE

    for name in ("hidden_dropout_prob", "attention_dropout", "drop_path_rate"):
        if getattr(config, name):
            raise ConfigError(
                f"{name} must be 0 for training here, as in the authors' models, not {getattr(config, name)}"
            )
    if config.image_size % NETWORK_STRIDE:
        raise ConfigError(
            f"image_size must be a multiple of {NETWORK_STRIDE} for training here, not {config.image_size}"
        )


FAMILY = Family(
    name="EoMT",
    model_types=("eomt",),
    config=EomtConfig.from_dict,
    build_model=_build_model,
    weight_names=WeightNames(hugging_face_names, IGNORED),
    hub_names=tuple(
        f"tue-mps/{of}_eomt_"
        for of in ("coco_panoptic", "coco_instance", "ade20k_panoptic", "ade20k_semantic", "cityscapes_semantic")
    ),
    license="MIT",
    image_processor=_image_processor,
    rules=FamilyRules(hf_unpads=True, hf_score_threshold=0.8, semantic_resize="scores"),
    image_processor_type="EomtImageProcessor",
    training=TrainingParts(
        _initial_model,
        _criterion,
        {f"eomt-{size}": partial(EomtConfig.published, size) for size in ("small", "base", "large", "giant")},
        _check_training,
    ),
    task_in_name=r"(^|[/_]){task}_eomt_[^/]*(/|$)",
)

DINOV3_FAMILY = replace(
    FAMILY,
    name="EoMT-DINOv3",
    model_types=("eomt_dinov3",),
    config=EomtDinov3Config.from_dict,
    weight_names=WeightNames(dinov3_names, IGNORED),
    license="DINOv3 License",  # its weights come from DINOv3's
    training=TrainingParts(
        _initial_model,
        _criterion,
        {f"eomt-dinov3-{size}": partial(EomtDinov3Config.published, size) for size in ("small", "base", "large")},
        _check_training,
    ),
)
