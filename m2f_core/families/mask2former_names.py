"""Other projects' names of the tensors of a Mask2Former.

Hugging Face has two spellings of the weights' names: the spelling in files on the hub, which transformers also writes,
and the spelling that its version 5 uses in memory. `RULES` maps our names to both, `DETECTRON2_RULES` to the names of
the original code. Only this module contains these names.
"""

from __future__ import annotations

import re

from m2f_core.families import backbone_names
from m2f_core.families.rules import Rule, Source, hugging_face_sources, source

_DECODER = "model.pixel_level_module.decoder."
_QUERIES = "model.transformer_module."


# Of the pixel decoder, which other families have too
PIXEL_DECODER_RULES = (
    Rule("pixel_decoder.input_projections.#.conv", (_DECODER + "input_projections.#.0",)),
    Rule("pixel_decoder.input_projections.#.norm", (_DECODER + "input_projections.#.1",)),
    Rule("pixel_decoder.layers.#.attention", (_DECODER + "encoder.layers.#.self_attn",)),
    Rule("pixel_decoder.layers.#.attention_norm", (_DECODER + "encoder.layers.#.self_attn_layer_norm",)),
    Rule("pixel_decoder.layers.#.feedforward_norm", (_DECODER + "encoder.layers.#.final_layer_norm",)),
    Rule("pixel_decoder.layers", (_DECODER + "encoder.layers",)),
    Rule("pixel_decoder.lateral.conv", (_DECODER + "adapter_1.0",)),
    Rule("pixel_decoder.lateral.norm", (_DECODER + "adapter_1.1",)),
    Rule("pixel_decoder.output.conv", (_DECODER + "layer_1.0",)),
    Rule("pixel_decoder.output.norm", (_DECODER + "layer_1.1",)),
    Rule("pixel_decoder", (_DECODER[:-1],)),  # level_embed, mask_projection
)

# The first matching rule applies.
RULES = (
    *backbone_names.HUB_RULES,
    *PIXEL_DECODER_RULES,
    # Transformer decoder
    Rule("transformer_decoder.query_features", (_QUERIES + "queries_features.weight",)),
    Rule("transformer_decoder.query_positions", (_QUERIES + "queries_embedder.weight",)),
    Rule("transformer_decoder.level_embed", (_QUERIES + "level_embed.weight",)),
    Rule("transformer_decoder.input_projections", (_QUERIES + "input_projections",)),
    *(
        Rule(
            f"transformer_decoder.layers.#.cross_attention.{projection}_proj.{kind}",
            (_QUERIES + f"decoder.layers.#.cross_attn.in_proj_{kind}",),
            third=third,
        )
        for third, projection in enumerate("qkv")
        for kind in ("weight", "bias")
    ),
    Rule("transformer_decoder.layers.#.cross_attention", (_QUERIES + "decoder.layers.#.cross_attn",)),
    Rule("transformer_decoder.layers.#.cross_attention_norm", (_QUERIES + "decoder.layers.#.cross_attn_layer_norm",)),
    Rule("transformer_decoder.layers.#.self_attention", (_QUERIES + "decoder.layers.#.self_attn",)),
    Rule("transformer_decoder.layers.#.self_attention_norm", (_QUERIES + "decoder.layers.#.self_attn_layer_norm",)),
    Rule("transformer_decoder.layers.#.feedforward_norm", (_QUERIES + "decoder.layers.#.final_layer_norm",)),
    Rule("transformer_decoder.layers", (_QUERIES + "decoder.layers",)),
    Rule("transformer_decoder.output_norm", (_QUERIES + "decoder.layernorm",)),
    Rule("transformer_decoder.mask_embedder.layers.#", (_QUERIES + "decoder.mask_predictor.mask_embedder.#.0",)),
    Rule("class_predictor", ("class_predictor",)),
)

HEAD = "sem_seg_head."
PIXEL_DECODER = HEAD + "pixel_decoder."
PREDICTOR = HEAD + "predictor."
_ENCODER_LAYER = PIXEL_DECODER + "transformer.encoder.layers.#."

DETECTRON2_RULES = (
    *backbone_names.DETECTRON2_RULES,
    # Pixel decoder
    Rule("pixel_decoder.input_projections.#.conv", (PIXEL_DECODER + "input_proj.#.0",)),
    Rule("pixel_decoder.input_projections.#.norm", (PIXEL_DECODER + "input_proj.#.1",)),
    Rule("pixel_decoder.layers.#.attention", (_ENCODER_LAYER + "self_attn",)),
    Rule("pixel_decoder.layers.#.attention_norm", (_ENCODER_LAYER + "norm1",)),
    Rule("pixel_decoder.layers.#.fc1", (_ENCODER_LAYER + "linear1",)),
    Rule("pixel_decoder.layers.#.fc2", (_ENCODER_LAYER + "linear2",)),
    Rule("pixel_decoder.layers.#.feedforward_norm", (_ENCODER_LAYER + "norm2",)),
    Rule("pixel_decoder.level_embed", (PIXEL_DECODER + "transformer.level_embed",)),
    Rule("pixel_decoder.lateral.conv", (PIXEL_DECODER + "adapter_1",)),
    Rule("pixel_decoder.lateral.norm", (PIXEL_DECODER + "adapter_1.norm",)),
    Rule("pixel_decoder.output.conv", (PIXEL_DECODER + "layer_1",)),
    Rule("pixel_decoder.output.norm", (PIXEL_DECODER + "layer_1.norm",)),
    Rule("pixel_decoder.mask_projection", (PIXEL_DECODER + "mask_features",)),
    # Transformer decoder
    Rule("transformer_decoder.query_features", (PREDICTOR + "query_feat.weight",)),
    Rule("transformer_decoder.query_positions", (PREDICTOR + "query_embed.weight",)),
    Rule("transformer_decoder.level_embed", (PREDICTOR + "level_embed.weight",)),
    Rule("transformer_decoder.input_projections", (PREDICTOR + "input_proj",)),
    *(
        Rule(
            f"transformer_decoder.layers.#.{ours}.{projection}_proj.{kind}",
            (f"{PREDICTOR}{theirs}.in_proj_{kind}",),
            third=third,
        )
        for ours, theirs in (
            ("cross_attention", "transformer_cross_attention_layers.#.multihead_attn"),
            ("self_attention", "transformer_self_attention_layers.#.self_attn"),
        )
        for third, projection in enumerate("qkv")
        for kind in ("weight", "bias")
    ),
    Rule(
        "transformer_decoder.layers.#.cross_attention",
        (PREDICTOR + "transformer_cross_attention_layers.#.multihead_attn",),
    ),
    Rule(
        "transformer_decoder.layers.#.cross_attention_norm", (PREDICTOR + "transformer_cross_attention_layers.#.norm",)
    ),
    Rule("transformer_decoder.layers.#.self_attention", (PREDICTOR + "transformer_self_attention_layers.#.self_attn",)),
    Rule("transformer_decoder.layers.#.self_attention_norm", (PREDICTOR + "transformer_self_attention_layers.#.norm",)),
    Rule("transformer_decoder.layers.#.fc1", (PREDICTOR + "transformer_ffn_layers.#.linear1",)),
    Rule("transformer_decoder.layers.#.fc2", (PREDICTOR + "transformer_ffn_layers.#.linear2",)),
    Rule("transformer_decoder.layers.#.feedforward_norm", (PREDICTOR + "transformer_ffn_layers.#.norm",)),
    Rule("transformer_decoder.output_norm", (PREDICTOR + "decoder_norm",)),
    Rule("transformer_decoder.mask_embedder.layers.#", (PREDICTOR + "mask_embed.layers.#",)),
    Rule("class_predictor", (PREDICTOR + "class_embed",)),
)

# Tensors in files that the model does not compute with: constants, the loss, and an unused norm.
IGNORED = re.compile(
    r"criterion\..*|.*\.relative_position_index|.*\.encoder\.(swin\.)?layernorm\.(weight|bias)|pixel_(mean|std)"
)


def hugging_face_names(our_name: str) -> tuple[Source, Source]:
    """The source of one of our tensors in Hugging Face's names: those on the hub, and those in memory."""
    return hugging_face_sources(RULES, our_name)


def detectron2_names(our_name: str) -> Source:
    """The source of one of our tensors in the names of the original code."""
    return source(DETECTRON2_RULES, our_name)


def todays_name(name: str) -> str:
    """A tensor's name in a `.pkl` of the original code, also an older one -> its name in today's.

    Older code had the pixel decoder in the head and called the queries' features static.
    """
    name = re.sub(rf"^{re.escape(HEAD)}(?!pixel_decoder\.|predictor\.)", PIXEL_DECODER, name)
    return name.replace(PREDICTOR + "static_query.", PREDICTOR + "query_feat.")
