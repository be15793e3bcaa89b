"""What Hugging Face calls our tensors.

Two spellings of the weights' names exist: the one of the files on the hub, which transformers also writes, and the one
that its version 5 uses in memory. `RULES` has both beside ours; it is the only place that knows them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """Our name of a tensor (or the front part of it) and those of Hugging Face; `#` stands for the same number in all.

    Several `hub` names are tensors that we keep as one, concatenated in this order. `third` is the opposite: ours is
    this third of theirs (PyTorch's MultiheadAttention keeps q, k and v as one).
    """

    ours: str
    hub: tuple[str, ...]
    in_memory: tuple[str, ...] = ()  # where it differs from `hub`
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


# The first rule that matches counts.
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

# In files, but not weights that the model computes with: constants, the loss, and a norm that nothing reads.
IGNORED = re.compile(r"criterion\..*|.*\.relative_position_index|.*\.encoder\.(swin\.)?layernorm\.(weight|bias)")


def hugging_face_names(our_name: str) -> tuple[tuple[str, ...], tuple[str, ...], int | None]:
    """What Hugging Face calls one of our tensors: on the hub, in memory, and which third of theirs ours is."""
    for rule in RULES:
        front = re.escape(rule.ours).replace(r"\#", r"(\d+)")
        if match := re.fullmatch(rf"{front}(?P<rest>(\..*)?)", our_name):
            numbers = match.groups()[: rule.ours.count("#")]

            def spell(template: str, numbers: tuple[str, ...] = numbers, rest: str = match["rest"]) -> str:
                for number in numbers:
                    template = template.replace("#", number, 1)
                return template + rest

            hub = tuple(map(spell, rule.hub))
            return hub, tuple(map(spell, rule.in_memory)) or hub, rule.third
    raise AssertionError(f"no rule for {our_name}")
