"""Other projects' names of the tensors of a backbone, which several families share.

Hugging Face has two spellings of the weights' names: the spelling in files on the hub, which transformers also writes,
and the spelling that its version 5 uses in memory. Only this module contains these names.
"""

from __future__ import annotations

import re

from m2f_core.families.rules import Rule

_ENCODER = "model.pixel_level_module.encoder."
_HUB_BLOCK = _ENCODER + "encoder.layers.#.blocks.#."
_NEW_BLOCK = _ENCODER + "swin.encoder.layers.#.blocks.#."


def _block_rule(ours: str, hub: tuple[str, ...], in_memory: tuple[str, ...]) -> Rule:
    return Rule(
        f"backbone.stages.#.blocks.#.{ours}",
        tuple(_HUB_BLOCK + name for name in hub),
        tuple(_NEW_BLOCK + name for name in in_memory),
    )


HUB_RULES = (
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
)

# Of the original code, by detectron2.
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
)


def as_swin(name: str) -> str:
    """A weight's name in a file of a `maskformer-swin` backbone -> its name in a file of a `swin` backbone.

    All other names stay as they are.
    """
    name = name.replace(_ENCODER + "model.", _ENCODER, 1)
    return re.sub(
        rf"^({re.escape(_ENCODER)}hidden_states_norms)\.(\d+)", lambda m: f"{m[1]}.stage{int(m[2]) + 1}", name
    )


def as_maskformer_swin(name: str) -> str:
    """The opposite of `as_swin`."""
    name = re.sub(rf"^{re.escape(_ENCODER)}(embeddings|encoder\.layers)\.", rf"{_ENCODER}model.\1.", name)
    return re.sub(
        rf"^({re.escape(_ENCODER)}hidden_states_norms)\.stage(\d+)", lambda m: f"{m[1]}.{int(m[2]) - 1}", name
    )
