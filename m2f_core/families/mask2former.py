"""Mask2Former: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation" (2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.families.backbone_names import as_swin
from m2f_core.families.family import Family, OriginalFormat, TrainingParts, WeightNames
from m2f_core.families.mask2former_names import IGNORED, detectron2_names, hugging_face_names, todays_name
from m2f_core.families.mask2former_original import infer_config, is_mask2former
from m2f_core.inference.settings import MASK2FORMER_RULES

if TYPE_CHECKING:
    from m2f_core.losses.loss import Criterion
    from m2f_core.model.mask2former import Mask2Former


def _build_model(config: Mask2FormerConfig) -> Mask2Former:
    from m2f_core.model.mask2former import build_model

    return build_model(config)


def _initial_model(config: Mask2FormerConfig, seed: int) -> Mask2Former:
    from m2f_core.training.initial_weights import initial_model

    return initial_model(config, seed)


def _criterion(config: Mask2FormerConfig) -> Criterion:
    from m2f_core.model.mask2former import build_criterion

    return build_criterion(config)


FAMILY = Family(
    name="Mask2Former",
    model_types=("mask2former",),
    config=Mask2FormerConfig.from_dict,
    build_model=_build_model,
    weight_names=WeightNames(hugging_face_names, IGNORED, as_swin),
    hub_names=("facebook/mask2former-",),
    license="CC BY-NC 4.0",
    task_in_name=r"mask2former-[^/]*-{task}(/|$)",
    rules=MASK2FORMER_RULES,
    original=OriginalFormat(is_mask2former, todays_name, infer_config, detectron2_names, IGNORED),
    has_int8=True,
    training=TrainingParts(
        _initial_model,
        _criterion,
        architectures={
            "swin-tiny": Mask2FormerConfig.swin_tiny,
            "swin-small": Mask2FormerConfig.swin_small,
            "swin-base": Mask2FormerConfig.swin_base,
            "swin-large": Mask2FormerConfig.swin_large,
        },
    ),
)
