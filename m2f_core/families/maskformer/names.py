"""Other projects' names of the tensors of a MaskFormer; see `m2f_core.families.mask2former_names`.

Hugging Face writes every Swin of a MaskFormer under the names of a `maskformer-swin`. Only this module contains the
names of the two decoders.
"""

from __future__ import annotations

import re
from dataclasses import replace

from m2f_core.families import backbone_names
from m2f_core.families.backbone_names import as_maskformer_swin
from m2f_core.families.mask2former_names import HEAD, PIXEL_DECODER, PREDICTOR
from m2f_core.families.rules import Rule, Source, hugging_face_sources, source

_PYRAMID = "model.pixel_level_module.decoder.fpn."
_QUERIES = "model.transformer_module."
_LAYER = _QUERIES + "decoder.layers.#."

# The first matching rule applies.
RULES = (
    *backbone_names.HUB_RULES,
    # Pixel decoder
    Rule("pixel_decoder.stem.conv", (_PYRAMID + "stem.0",)),
    Rule("pixel_decoder.stem.norm", (_PYRAMID + "stem.1",)),
    Rule("pixel_decoder.steps.#.lateral.conv", (_PYRAMID + "layers.#.proj.0",)),
    Rule("pixel_decoder.steps.#.lateral.norm", (_PYRAMID + "layers.#.proj.1",)),
    Rule("pixel_decoder.steps.#.output.conv", (_PYRAMID + "layers.#.block.0",)),
    Rule("pixel_decoder.steps.#.output.norm", (_PYRAMID + "layers.#.block.1",)),
    Rule("pixel_decoder.mask_projection", ("model.pixel_level_module.decoder.mask_projection",)),
    # Transformer decoder
    Rule("transformer_decoder.query_positions", (_QUERIES + "queries_embedder.weight",)),
    Rule("transformer_decoder.input_projection", (_QUERIES + "input_projection",)),
    *(
        Rule(
            f"transformer_decoder.layers.#.{ours}.out_proj",
            (f"{_LAYER}{theirs}.out_proj",),
            (f"{_LAYER}{theirs}.o_proj",),
        )
        for ours, theirs in (("self_attention", "self_attn"), ("cross_attention", "encoder_attn"))
    ),
    Rule("transformer_decoder.layers.#.self_attention", (_LAYER + "self_attn",)),
    Rule("transformer_decoder.layers.#.cross_attention", (_LAYER + "encoder_attn",)),
    Rule("transformer_decoder.layers.#.self_attention_norm", (_LAYER + "self_attn_layer_norm",)),
    Rule("transformer_decoder.layers.#.cross_attention_norm", (_LAYER + "encoder_attn_layer_norm",)),
    Rule("transformer_decoder.layers.#.feedforward_norm", (_LAYER + "final_layer_norm",)),
    Rule("transformer_decoder.layers.#.fc1", (_LAYER + "fc1",), (_LAYER + "mlp.fc1",)),
    Rule("transformer_decoder.layers.#.fc2", (_LAYER + "fc2",), (_LAYER + "mlp.fc2",)),
    Rule("transformer_decoder.output_norm", (_QUERIES + "decoder.layernorm",)),
    Rule("transformer_decoder.mask_embedder.layers.#", ("mask_embedder.#.0",)),
    Rule("class_predictor", ("class_predictor",)),
)

DECODER = PREDICTOR + "transformer.decoder."
_ORIGINAL_LAYER = DECODER + "layers.#."

DETECTRON2_RULES = (
    *backbone_names.DETECTRON2_RULES,
    # Pixel decoder; its layers are numbered from fine to coarse
    Rule("pixel_decoder.stem.conv", (PIXEL_DECODER + "layer_4",)),
    Rule("pixel_decoder.stem.norm", (PIXEL_DECODER + "layer_4.norm",)),
    *(
        Rule(f"pixel_decoder.steps.{step}.{ours}{part}", (f"{PIXEL_DECODER}{theirs}_{3 - step}{their_part}",))
        for step in range(3)
        for ours, theirs in (("lateral", "adapter"), ("output", "layer"))
        for part, their_part in ((".conv", ""), (".norm", ".norm"))
    ),
    Rule("pixel_decoder.mask_projection", (PIXEL_DECODER + "mask_features",)),
    # Transformer decoder
    Rule("transformer_decoder.query_positions", (PREDICTOR + "query_embed.weight",)),
    Rule("transformer_decoder.input_projection", (PREDICTOR + "input_proj",)),
    *(
        Rule(
            f"transformer_decoder.layers.#.{ours}.{projection}_proj.{kind}",
            (f"{_ORIGINAL_LAYER}{theirs}.in_proj_{kind}",),
            third=third,
        )
        for ours, theirs in (("cross_attention", "multihead_attn"), ("self_attention", "self_attn"))
        for third, projection in enumerate("qkv")
        for kind in ("weight", "bias")
    ),
    Rule("transformer_decoder.layers.#.self_attention", (_ORIGINAL_LAYER + "self_attn",)),
    Rule("transformer_decoder.layers.#.cross_attention", (_ORIGINAL_LAYER + "multihead_attn",)),
    Rule("transformer_decoder.layers.#.self_attention_norm", (_ORIGINAL_LAYER + "norm1",)),
    Rule("transformer_decoder.layers.#.cross_attention_norm", (_ORIGINAL_LAYER + "norm2",)),
    Rule("transformer_decoder.layers.#.feedforward_norm", (_ORIGINAL_LAYER + "norm3",)),
    Rule("transformer_decoder.layers.#.fc1", (_ORIGINAL_LAYER + "linear1",)),
    Rule("transformer_decoder.layers.#.fc2", (_ORIGINAL_LAYER + "linear2",)),
    Rule("transformer_decoder.output_norm", (DECODER + "norm",)),
    Rule("transformer_decoder.mask_embedder.layers.#", (PREDICTOR + "mask_embed.layers.#",)),
    Rule("class_predictor", (PREDICTOR + "class_embed",)),
)

# Tensors in files that the model does not compute with: constants, the loss, and an unused norm.
IGNORED = re.compile(
    r"criterion\..*|.*\.relative_position_index|.*\.encoder\.model\.layernorm\.(weight|bias)|pixel_(mean|std)"
)


def hugging_face_names(our_name: str) -> tuple[Source, Source]:
    """The source of one of our tensors in Hugging Face's names: those on the hub, and those in memory.

    A `maskformer-swin` has the same names in both.
    """
    hub, in_memory = hugging_face_sources(RULES, our_name)
    renamed = replace(hub, names=tuple(map(as_maskformer_swin, hub.names)))
    return renamed, renamed if our_name.startswith("backbone.") else in_memory


def detectron2_names(our_name: str) -> Source:
    """The source of one of our tensors in the names of the original code."""
    return source(DETECTRON2_RULES, our_name)


def todays_name(name: str) -> str:
    """A tensor's name in a `.pkl` of the original code, also an older one -> its name in today's.

    Older code had the pixel decoder in the head.
    """
    return re.sub(rf"^{re.escape(HEAD)}(?!pixel_decoder\.|predictor\.)", PIXEL_DECODER, name)
