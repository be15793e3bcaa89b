"""The configuration of a Mask2Former from the names and shapes in a `.pkl` of the original code.

Such a file has no configuration and no class names; the classes are those of the dataset with this number of classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.families.mask2former_names import PIXEL_DECODER, PREDICTOR
from m2f_core.families.original_shapes import Shapes, class_names, infer_backbone

# Every deformable attention in the original has three levels, four points and two coordinates.
OFFSETS_PER_HEAD = 3 * 4 * 2


def is_mask2former(names: Sequence[str]) -> bool:
    """Whether arrays of these names belong to a Mask2Former: a MaskFormer's predictor has its layers one level down."""
    of_predictor = [name for name in names if name.startswith(PREDICTOR)]
    return bool(of_predictor) and not any(name.startswith(PREDICTOR + "transformer.") for name in of_predictor)


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> Mask2FormerConfig:
    """The configuration whose weights have these names and shapes (in the naming of the present original code).

    Names and shapes do not show two properties, which are assumed as in every published model: the decoder has as many
    heads as the pixel decoder, and it normalises after each part. Raises ConfigError.
    """
    known = Shapes(shapes)
    layer = PIXEL_DECODER + "transformer.encoder.layers."
    offsets = known.size(f"{layer}0.self_attn.sampling_offsets.weight", 0)
    feature_size = known.size(PIXEL_DECODER + "input_proj.0.0.weight", 0, dimensions=4)
    num_queries, hidden_dim = (known.size(PREDICTOR + "query_feat.weight", axis) for axis in (0, 1))
    return Mask2FormerConfig(
        backbone_config=infer_backbone(known),
        feature_size=feature_size,
        mask_feature_size=known.size(PIXEL_DECODER + "mask_features.weight", 0, dimensions=4),
        hidden_dim=hidden_dim,
        encoder_layers=known.count(layer),
        encoder_feedforward_dim=known.size(f"{layer}0.linear1.weight", 0),
        decoder_layers=known.count(PREDICTOR + "transformer_ffn_layers.") + 1,
        num_attention_heads=offsets // OFFSETS_PER_HEAD,
        dim_feedforward=known.size(PREDICTOR + "transformer_ffn_layers.0.linear1.weight", 0),
        # If the widths differ, there is always a projection.
        enforce_input_projection=feature_size == hidden_dim and PREDICTOR + "input_proj.0.weight" in shapes,
        num_queries=num_queries,
        id2label=class_names(known, PREDICTOR + "class_embed.weight"),
    )
