"""The configuration of a MaskFormer from the names and shapes in a `.pkl` of the original code.

Such a file has no configuration and no class names; the classes are those of the dataset with this number of classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from m2f_core.config.fields import ConfigError
from m2f_core.config.maskformer import ORIGINAL_DECODER, MaskFormerConfig
from m2f_core.families.mask2former_names import PIXEL_DECODER, PREDICTOR
from m2f_core.families.maskformer.names import DECODER
from m2f_core.families.original_shapes import Shapes, class_names, infer_backbone

CHANNELS_PER_HEAD = 32  # in every published model


def is_maskformer(names: Sequence[str]) -> bool:
    """Whether arrays of these names belong to a MaskFormer."""
    return any(name.startswith(PREDICTOR + "transformer.") for name in names)


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> MaskFormerConfig:
    """The configuration whose weights have these names and shapes (in the naming of the present original code).

    Names and shapes do not show three properties, which are taken as in every published model: a head has 32 channels,
    the decoder normalises after each part, and training drops a tenth. Raises ConfigError.
    """
    known = Shapes(shapes)
    for part in (PIXEL_DECODER + "transformer.", PREDICTOR + "transformer.encoder."):
        if any(name.startswith(part) for name in shapes):
            raise ConfigError(
                f"has a transformer encoder ({part}...), which is not supported; of the published MaskFormers with a "
                "ResNet, those for semantic segmentation have none"
            )
    num_queries, hidden_dim = (known.size(PREDICTOR + "query_embed.weight", axis) for axis in (0, 1))
    return MaskFormerConfig(
        backbone_config=infer_backbone(known),
        decoder_config=replace(
            ORIGINAL_DECODER,
            d_model=hidden_dim,
            num_queries=num_queries,
            decoder_layers=known.count(DECODER + "layers."),
            decoder_attention_heads=max(1, hidden_dim // CHANNELS_PER_HEAD),
            decoder_ffn_dim=known.size(DECODER + "layers.0.linear1.weight", 0),
        ),
        fpn_feature_size=known.size(PIXEL_DECODER + "layer_4.weight", 0, dimensions=4),
        mask_feature_size=known.size(PIXEL_DECODER + "mask_features.weight", 0, dimensions=4),
        use_auxiliary_loss=True,
        id2label=class_names(known, PREDICTOR + "class_embed.weight"),
    )
