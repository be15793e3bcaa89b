"""transformers' names of the tensors of an EoMT, on a DINOv2 and on a DINOv3.

A SwiGLU has two spellings: version 5 of transformers has two layers where the files of version 4, which the hub has,
have one.
"""

from __future__ import annotations

import re

from m2f_core.families.rules import Rule, Source, hugging_face_sources

# The first matching rule applies.
RULES = (
    Rule("tokens.class_token", ("embeddings.cls_token",)),
    Rule("tokens.registers", ("embeddings.register_tokens",)),
    Rule("tokens.patches", ("embeddings.patch_embeddings.projection",)),
    Rule("tokens.positions", ("embeddings.position_embeddings.weight",)),
    Rule("blocks.#.scale1", ("layers.#.layer_scale1.lambda1",)),
    Rule("blocks.#.scale2", ("layers.#.layer_scale2.lambda1",)),
    Rule(
        "blocks.#.feedforward.gate_and_up",
        ("layers.#.mlp.gate_proj", "layers.#.mlp.up_proj"),
        in_memory=("layers.#.mlp.weights_in",),
    ),
    Rule("blocks.#.feedforward.down", ("layers.#.mlp.down_proj",), in_memory=("layers.#.mlp.weights_out",)),
    Rule("blocks.#.feedforward", ("layers.#.mlp",)),
    Rule("blocks", ("layers",)),  # norms, attention
    Rule("norm", ("layernorm",)),
    Rule("queries", ("query.weight",)),
    Rule("upscale.#.enlarge", ("upscale_block.block.#.conv1",)),
    Rule("upscale.#.mix", ("upscale_block.block.#.conv2",)),
    Rule("upscale.#.norm", ("upscale_block.block.#.layernorm2d",)),
    Rule("mask_head.0", ("mask_head.fc1",)),
    Rule("mask_head.1", ("mask_head.fc2",)),
    Rule("mask_head.2", ("mask_head.fc3",)),
    Rule("class_predictor", ("class_predictor",)),
    Rule("attn_mask_probs", ("attn_mask_probs",)),
)

DINOV3_RULES = (
    Rule("tokens.patches", ("embeddings.patch_embeddings",)),
    Rule("blocks.#.feedforward.fc1", ("layers.#.mlp.up_proj",)),
    Rule("blocks.#.feedforward.fc2", ("layers.#.mlp.down_proj",)),
    Rule("blocks.#.attention.out_proj", ("layers.#.attention.o_proj",)),
    *RULES,
)

# Tensors in files that the model does not compute with: a constant of the loss, a token that DINOv3's own training puts
# in the place of hidden patches, and what follows from the configuration.
IGNORED = re.compile(r"criterion\..*|embeddings\.mask_token|rope_embeddings\..*")


def hugging_face_names(our_name: str) -> tuple[Source, Source]:
    """The source of one of our tensors: in transformers' names of today, and in those of its version 4."""
    return hugging_face_sources(RULES, our_name)


def dinov3_names(our_name: str) -> tuple[Source, Source]:
    """The source of one of our tensors of an EoMT on a DINOv3: two times the one spelling that transformers has."""
    return hugging_face_sources(DINOV3_RULES, our_name)
