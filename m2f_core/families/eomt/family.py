"""EoMT: Kerssies et al., "Your ViT is Secretly an Image Segmentation Model" (2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from m2f_core.config.eomt import EomtConfig
from m2f_core.config.labels import Task
from m2f_core.families.eomt.names import IGNORED, hugging_face_names
from m2f_core.families.family import Family, WeightNames
from m2f_core.inference.settings import FamilyRules

if TYPE_CHECKING:
    from m2f_core.images.image_processor import ImageProcessor
    from m2f_core.images.image_size import ImageSize
    from m2f_core.model.eomt.eomt import Eomt


def _build_model(config: EomtConfig) -> Eomt:
    from m2f_core.model.eomt.eomt import build_model

    return build_model(config)


def _image_processor(
    config: EomtConfig, preprocessor: Mapping[str, Any] | None, mode: str, image_size: ImageSize | None, task: Task
) -> ImageProcessor:
    from m2f_core.images.square import SquareProcessor

    return SquareProcessor.read(preprocessor, mode, image_size, config.image_size, cuts=task == "semantic")


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
    task_in_name=r"(^|[/_]){task}_eomt_[^/]*(/|$)",
)
