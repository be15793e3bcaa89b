"""OneFormer: Jain et al., "OneFormer: One Transformer to Rule Universal Image Segmentation" (2023).

The names of its tensors stand only here. Files of a training hold a text mapper too, which inference does not use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from m2f_core.config.labels import Task
from m2f_core.config.oneformer import OneFormerConfig
from m2f_core.families import backbone_names, mask2former_names
from m2f_core.families.family import Family, WeightNames, any_size
from m2f_core.families.rules import Rule, Source, hugging_face_sources
from m2f_core.inference.settings import FamilyRules

if TYPE_CHECKING:
    from m2f_core.images.image_processor import ImageProcessor
    from m2f_core.images.image_size import ImageSize
    from m2f_core.model.oneformer.oneformer import OneFormer

_TASK = "model.task_encoder.task_mlp.layers."
_QUERIES = "model.transformer_module."
_DECODER = _QUERIES + "decoder."
_QUERY_LAYER = _DECODER + "query_transformer.decoder.layers.#."
_LAYER = _DECODER + "layers.#."


def _thirds(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Of an attention whose q, k and v are one tensor in files."""
    return tuple(
        Rule(f"{ours}.{projection}_proj.{kind}", (f"{theirs}.in_proj_{kind}",), third=third)
        for third, projection in enumerate("qkv")
        for kind in ("weight", "bias")
    )


# The first matching rule applies.
RULES = (
    *backbone_names.HUB_RULES,
    *mask2former_names.PIXEL_DECODER_RULES,
    # Task
    Rule("task_encoder.fc1", (_TASK + "0.0",)),
    Rule("task_encoder.fc2", (_TASK + "1.0",)),
    # Query transformer
    Rule("query_transformer.input_projection", (_DECODER + "query_input_projection",)),
    *_thirds("query_transformer.layers.#.self_attention", _QUERY_LAYER + "self_attn"),
    *_thirds("query_transformer.layers.#.cross_attention", _QUERY_LAYER + "multihead_attn"),
    Rule("query_transformer.layers.#.self_attention", (_QUERY_LAYER + "self_attn",)),
    Rule("query_transformer.layers.#.cross_attention", (_QUERY_LAYER + "multihead_attn",)),
    Rule("query_transformer.layers.#.self_attention_norm", (_QUERY_LAYER + "norm1",)),
    Rule("query_transformer.layers.#.cross_attention_norm", (_QUERY_LAYER + "norm2",)),
    Rule("query_transformer.layers.#.feedforward_norm", (_QUERY_LAYER + "norm3",)),
    Rule("query_transformer.layers.#.fc1", (_QUERY_LAYER + "linear1",)),
    Rule("query_transformer.layers.#.fc2", (_QUERY_LAYER + "linear2",)),
    Rule("query_transformer.output_norm", (_DECODER + "query_transformer.decoder.norm",)),
    # Transformer decoder
    Rule("transformer_decoder.query_positions", (_QUERIES + "queries_embedder.weight",)),
    Rule("transformer_decoder.level_embed", (_QUERIES + "level_embed.weight",)),
    *_thirds("transformer_decoder.layers.#.cross_attention", _LAYER + "cross_attn.multihead_attn"),
    Rule("transformer_decoder.layers.#.cross_attention", (_LAYER + "cross_attn.multihead_attn",)),
    Rule("transformer_decoder.layers.#.cross_attention_norm", (_LAYER + "cross_attn.norm",)),
    Rule("transformer_decoder.layers.#.self_attention", (_LAYER + "self_attn.self_attn",)),
    Rule("transformer_decoder.layers.#.self_attention_norm", (_LAYER + "self_attn.norm",)),
    Rule("transformer_decoder.layers.#.fc1", (_LAYER + "ffn.linear1",)),
    Rule("transformer_decoder.layers.#.fc2", (_LAYER + "ffn.linear2",)),
    Rule("transformer_decoder.layers.#.feedforward_norm", (_LAYER + "ffn.norm",)),
    Rule("transformer_decoder.output_norm", (_DECODER + "decoder_norm",)),
    Rule("transformer_decoder.mask_embedder.layers.#", (_DECODER + "mask_embed.layers.#.0",)),
    Rule("class_predictor", (_DECODER + "class_embed",)),
)
# The text mapper, and what Mask2Former's files have too: the loss, constants, an unused norm.
IGNORED = re.compile(rf"model\.text_mapper\..*|{mask2former_names.IGNORED.pattern}")


# In the authors' configs, DETECTIONS_PER_IMAGE is the number of queries, and OBJECT_MASK_THRESHOLD is 0.5 for ADE20K.
RULES_OF_INFERENCE = FamilyRules(
    hf_antialias=True, hf_exclusive=True, score_thresholds=(("ade20k-panoptic", 0.5),), top_k=None
)


def hugging_face_names(our_name: str) -> tuple[Source, Source]:
    """The source of one of our tensors in Hugging Face's names: those on the hub, and those in memory."""
    return hugging_face_sources(RULES, our_name)


def _build_model(config: OneFormerConfig) -> OneFormer:
    from m2f_core.model.oneformer.oneformer import build_model

    return build_model(config)


def _image_processor(
    config: OneFormerConfig, preprocessor: Mapping[str, Any] | None, mode: str, image_size: ImageSize | None, task: Task
) -> ImageProcessor:
    """As Mask2Former's, but a file of transformers without `size_divisor` rounds no side."""
    if preprocessor is not None and mode == "hf" and preprocessor.get("size_divisor") is None:
        preprocessor = {**preprocessor, "size_divisor": 0}
    return any_size(config, preprocessor, mode, image_size, task)


FAMILY = Family(
    name="OneFormer",
    model_types=("oneformer",),
    config=OneFormerConfig.from_dict,
    build_model=_build_model,
    weight_names=WeightNames(hugging_face_names, IGNORED, backbone_names.as_swin),
    hub_names=("shi-labs/oneformer_",),
    license="MIT",
    reads_task=True,
    image_processor=_image_processor,
    rules=RULES_OF_INFERENCE,
)
