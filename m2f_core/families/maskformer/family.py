"""MaskFormer: Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation" (2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.families.family import Family, OriginalFormat, TrainingParts, WeightNames
from m2f_core.families.maskformer.names import IGNORED, detectron2_names, hugging_face_names, todays_name
from m2f_core.families.maskformer.original import infer_config, is_maskformer
from m2f_core.inference.settings import FamilyRules

if TYPE_CHECKING:
    from m2f_core.losses.full_masks import FullMaskCriterion
    from m2f_core.model.maskformer.maskformer import MaskFormer


def _build_model(config: MaskFormerConfig) -> MaskFormer:
    from m2f_core.model.maskformer.maskformer import build_model

    return build_model(config)


def _initial_model(config: MaskFormerConfig, seed: int) -> MaskFormer:
    from m2f_core.training.maskformer_weights import initial_maskformer

    return initial_maskformer(config, seed)


def _criterion(config: MaskFormerConfig) -> FullMaskCriterion:
    from m2f_core.model.maskformer.maskformer import build_criterion

    return build_criterion(config)


FAMILY = Family(
    name="MaskFormer",
    model_types=("maskformer",),
    config=MaskFormerConfig.from_dict,
    build_model=_build_model,
    weight_names=WeightNames(hugging_face_names, IGNORED),
    hub_names=("facebook/maskformer-",),
    license="CC BY-NC 4.0",
    task_in_name=r"maskformer-[^/]*-{task}(/|$)",
    # On the hub the names show the data set, and with it the task.
    task_words={"panoptic": "(panoptic|coco)", "semantic": "(semantic|ade|coco-stuff|cityscapes)"},
    rules=FamilyRules(winners_keep_all=True),
    image_processor_type="MaskFormerImageProcessor",
    original=OriginalFormat(is_maskformer, todays_name, infer_config, detectron2_names, IGNORED),
    training=TrainingParts(
        _initial_model,
        _criterion,
        architectures={
            "maskformer-swin-tiny": MaskFormerConfig.swin_tiny,
            "maskformer-swin-small": MaskFormerConfig.swin_small,
            "maskformer-swin-base": MaskFormerConfig.swin_base,
            "maskformer-swin-large": MaskFormerConfig.swin_large,
        },
    ),
)
