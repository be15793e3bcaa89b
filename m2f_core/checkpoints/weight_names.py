"""Other projects' names of our tensors.

Hugging Face has two spellings of the weights' names: the spelling in files on the hub, which transformers also writes,
and the spelling that its version 5 uses in memory. `RULES` maps our names to both, `DETECTRON2_RULES` to the names of
the original code. Only this module contains these names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from m2f_core.checkpoints.stored_weights import Source


@dataclass(frozen=True)
class Rule:
    """Our name of a tensor (or the first part of the name) and `theirs`; `#` stands for the same number in all.

    If `theirs` has several names, our tensor is the concatenation of those tensors in this order. `third` is the
    opposite: our tensor is this third of theirs (PyTorch's MultiheadAttention stores q, k and v as one tensor).
    """

    ours: str
    theirs: tuple[str, ...]
    in_memory: tuple[str, ...] = ()  # Hugging Face's other spelling, if it differs
    third: int | None = None


_ENCODER = "model.pixel_level_module.encoder."
_DECODER = "model.pixel_level_module.decoder."
_QUERIES = "model.transformer_module."
_HUB_BLOCK = _ENCODER + "encoder.layers.#.blocks.#."
_NEW_BLOCK = _ENCODER + "swin.encoder.layers.#.blocks.#."


def _block_rule(ours: str, hub: tuple[str, ...], in_memory: tuple[str, ...]) -> Rule:
    return Rule(
        f"backbone.stages.#.blocks.#.{ours}",
        tuple(_HUB_BLOCK + name for name in hub),
        tuple(_NEW_BLOCK + name for name in in_memory),
    )


# The first matching rule applies.
RULES = (
    # Swin
    Rule(
        "backbone.patch_embedding.projection",
        (_ENCODER + "embeddings.patch_embeddings.projection",),
        (_ENCODER + "swin.embeddings.patch_embeddings.projection",),
    ),
    Rule("backbone.patch_embedding.norm", (_ENCODER + "embeddings.norm",), (_ENCODER + "swin.embeddings.norm",)),
    _block_rule(
        "attention.qkv",
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ),
    _block_rule(
        "attention.relative_position_bias_table",
        ("attention.self.relative_position_bias_table",),
        ("attention.relative_position_bias.relative_position_bias_table",),
    ),
    _block_rule("attention.out_proj", ("attention.output.dense",), ("attention.o_proj",)),
    _block_rule("attention_norm", ("layernorm_before",), ("layernorm_before",)),
    _block_rule("mlp_norm", ("layernorm_after",), ("layernorm_after",)),
    _block_rule("mlp.fc1", ("intermediate.dense",), ("mlp.fc1",)),
    _block_rule("mlp.fc2", ("output.dense",), ("mlp.fc2",)),
    Rule(
        "backbone.stages.#.downsample",
        (_ENCODER + "encoder.layers.#.downsample",),
        (_ENCODER + "swin.encoder.layers.#.downsample",),
    ),
    Rule("backbone.output_norms", (_ENCODER + "hidden_states_norms",)),
    # ResNet
    *(
        Rule(f"backbone.{ours}.{part}", (f"{_ENCODER}{theirs}.{their_part}",))
        for ours, theirs in (
            ("stem", "embedder.embedder"),
            ("stages.#.#.first", "encoder.stages.#.layers.#.layer.0"),
            ("stages.#.#.second", "encoder.stages.#.layers.#.layer.1"),
            ("stages.#.#.reduce", "encoder.stages.#.layers.#.layer.0"),
            ("stages.#.#.spatial", "encoder.stages.#.layers.#.layer.1"),
            ("stages.#.#.expand", "encoder.stages.#.layers.#.layer.2"),
            ("stages.#.#.shortcut", "encoder.stages.#.layers.#.shortcut"),
        )
        for part, their_part in (("conv", "convolution"), ("norm", "normalization"))
    ),
    # Pixel decoder
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

_HEAD = "sem_seg_head.pixel_decoder."
_ENCODER_LAYER = _HEAD + "transformer.encoder.layers.#."
_PREDICTOR = "sem_seg_head.predictor."

DETECTRON2_RULES = (
    # Swin; its q, k and v are one tensor, as in our model
    Rule("backbone.patch_embedding.projection", ("backbone.patch_embed.proj",)),
    Rule("backbone.patch_embedding.norm", ("backbone.patch_embed.norm",)),
    Rule("backbone.stages.#.blocks.#.attention.out_proj", ("backbone.layers.#.blocks.#.attn.proj",)),
    Rule("backbone.stages.#.blocks.#.attention", ("backbone.layers.#.blocks.#.attn",)),
    Rule("backbone.stages.#.blocks.#.attention_norm", ("backbone.layers.#.blocks.#.norm1",)),
    Rule("backbone.stages.#.blocks.#.mlp_norm", ("backbone.layers.#.blocks.#.norm2",)),
    Rule("backbone.stages.#.blocks.#.mlp", ("backbone.layers.#.blocks.#.mlp",)),
    Rule("backbone.stages.#.downsample", ("backbone.layers.#.downsample",)),
    *(Rule(f"backbone.output_norms.stage{index + 1}", (f"backbone.norm{index}",)) for index in range(4)),
    # ResNet; its first stage is res2, because the stem counts as res1
    Rule("backbone.stem.conv", ("backbone.stem.conv1",)),
    Rule("backbone.stem.norm", ("backbone.stem.conv1.norm",)),
    *(
        Rule(f"backbone.stages.{index}.#.{ours}.{part}", (f"backbone.res{index + 2}.#.{theirs}{their_part}",))
        for index in range(4)
        for ours, theirs in (("reduce", "conv1"), ("spatial", "conv2"), ("expand", "conv3"), ("shortcut", "shortcut"))
        for part, their_part in (("conv", ""), ("norm", ".norm"))
    ),
    # Pixel decoder
    Rule("pixel_decoder.input_projections.#.conv", (_HEAD + "input_proj.#.0",)),
    Rule("pixel_decoder.input_projections.#.norm", (_HEAD + "input_proj.#.1",)),
    Rule("pixel_decoder.layers.#.attention", (_ENCODER_LAYER + "self_attn",)),
    Rule("pixel_decoder.layers.#.attention_norm", (_ENCODER_LAYER + "norm1",)),
    Rule("pixel_decoder.layers.#.fc1", (_ENCODER_LAYER + "linear1",)),
    Rule("pixel_decoder.layers.#.fc2", (_ENCODER_LAYER + "linear2",)),
    Rule("pixel_decoder.layers.#.feedforward_norm", (_ENCODER_LAYER + "norm2",)),
    Rule("pixel_decoder.level_embed", (_HEAD + "transformer.level_embed",)),
    Rule("pixel_decoder.lateral.conv", (_HEAD + "adapter_1",)),
    Rule("pixel_decoder.lateral.norm", (_HEAD + "adapter_1.norm",)),
    Rule("pixel_decoder.output.conv", (_HEAD + "layer_1",)),
    Rule("pixel_decoder.output.norm", (_HEAD + "layer_1.norm",)),
    Rule("pixel_decoder.mask_projection", (_HEAD + "mask_features",)),
    # Transformer decoder
    Rule("transformer_decoder.query_features", (_PREDICTOR + "query_feat.weight",)),
    Rule("transformer_decoder.query_positions", (_PREDICTOR + "query_embed.weight",)),
    Rule("transformer_decoder.level_embed", (_PREDICTOR + "level_embed.weight",)),
    Rule("transformer_decoder.input_projections", (_PREDICTOR + "input_proj",)),
    *(
        Rule(
            f"transformer_decoder.layers.#.{ours}.{projection}_proj.{kind}",
            (f"{_PREDICTOR}{theirs}.in_proj_{kind}",),
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
        (_PREDICTOR + "transformer_cross_attention_layers.#.multihead_attn",),
    ),
    Rule(
        "transformer_decoder.layers.#.cross_attention_norm", (_PREDICTOR + "transformer_cross_attention_layers.#.norm",)
    ),
    Rule(
        "transformer_decoder.layers.#.self_attention", (_PREDICTOR + "transformer_self_attention_layers.#.self_attn",)
    ),
    Rule(
        "transformer_decoder.layers.#.self_attention_norm", (_PREDICTOR + "transformer_self_attention_layers.#.norm",)
    ),
    Rule("transformer_decoder.layers.#.fc1", (_PREDICTOR + "transformer_ffn_layers.#.linear1",)),
    Rule("transformer_decoder.layers.#.fc2", (_PREDICTOR + "transformer_ffn_layers.#.linear2",)),
    Rule("transformer_decoder.layers.#.feedforward_norm", (_PREDICTOR + "transformer_ffn_layers.#.norm",)),
    Rule("transformer_decoder.output_norm", (_PREDICTOR + "decoder_norm",)),
    Rule("transformer_decoder.mask_embedder.layers.#", (_PREDICTOR + "mask_embed.layers.#",)),
    Rule("class_predictor", (_PREDICTOR + "class_embed",)),
)

# Tensors in files that the model does not compute with: constants, the loss, and an unused norm.
IGNORED = re.compile(
    r"criterion\..*|.*\.relative_position_index|.*\.encoder\.(swin\.)?layernorm\.(weight|bias)|pixel_(mean|std)"
)


def as_swin(name: str) -> str:
    """A weight's name in a file of a `maskformer-swin` backbone -> its name in a file of a `swin` backbone.

    All other names stay as they are.
    """
    name = name.replace(_ENCODER + "model.", _ENCODER, 1)
    return re.sub(
        rf"^({re.escape(_ENCODER)}hidden_states_norms)\.(\d+)", lambda m: f"{m[1]}.stage{int(m[2]) + 1}", name
    )


def hugging_face_names(our_name: str) -> tuple[Source, Source]:
    """The source of one of our tensors in Hugging Face's names: those on the hub, and those in memory."""
    rule, numbers, rest = _find_rule(RULES, our_name)
    hub = _spell(rule.theirs, numbers, rest)
    return Source(hub, rule.third), Source(_spell(rule.in_memory, numbers, rest) or hub, rule.third)


def detectron2_names(our_name: str) -> Source:
    """The source of one of our tensors in the names of the original code."""
    rule, numbers, rest = _find_rule(DETECTRON2_RULES, our_name)
    return Source(_spell(rule.theirs, numbers, rest), rule.third)


def _find_rule(rules: Sequence[Rule], our_name: str) -> tuple[Rule, tuple[str, ...], str]:
    """The rule, the numbers of its `#`, and what follows the part that the rule names."""
    for rule in rules:
        front = re.escape(rule.ours).replace(r"\#", r"(\d+)")
        if match := re.fullmatch(rf"{front}(?P<rest>(\..*)?)", our_name):
            return rule, match.groups()[: rule.ours.count("#")], match["rest"]
    raise AssertionError(f"no rule for {our_name}")


def _spell(templates: tuple[str, ...], numbers: tuple[str, ...], rest: str) -> tuple[str, ...]:
    for number in numbers:
        templates = tuple(template.replace("#", number, 1) for template in templates)
    return tuple(template + rest for template in templates)
