"""Mask2Former: the flow through its parts, and the builder that passes every number to them.

Legend: B batch, Q query, K classes, H W pixels of the normalised (and padded) image, h w cells at stride 4:
h = ceil(H / 4), w = ceil(W / 4).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.layers.activations import ACTIVATIONS
from m2f_core.losses.loss import Criterion
from m2f_core.losses.matcher import LossWeights
from m2f_core.losses.points import Rand
from m2f_core.model.backbones import build_backbone
from m2f_core.model.contract import SegmentationModel, SegmentationOutput
from m2f_core.model.pixel_decoder import DeformableEncoderLayer, PixelDecoder
from m2f_core.model.resnet import BasicBlock, Bottleneck, ResNet
from m2f_core.model.swin import SwinBlock
from m2f_core.model.transformer_decoder import DecoderLayer, QueryPrediction, TransformerDecoder


class Decoded(NamedTuple):
    """What the model's parts compute; see `SegmentationOutput` for the shapes."""

    features: list[Tensor]  # of the backbone
    mask_features: Tensor
    maps: list[Tensor]  # of the pixel decoder
    predictions: list[QueryPrediction]


class Mask2Former(SegmentationModel):
    """Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation" (2022).

    `build_model` makes the parts and passes them in. `config` is the configuration they were made from; `forward` reads
    from it only which predictions are wanted.
    """

    config: Mask2FormerConfig

    def __init__(
        self,
        config: Mask2FormerConfig,
        backbone: nn.Module,
        pixel_decoder: nn.Module,
        transformer_decoder: nn.Module,
        class_predictor: nn.Module,
        criterion: Criterion,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.transformer_decoder = transformer_decoder
        self.class_predictor = class_predictor
        self.criterion = criterion

    def forward(
        self,
        pixel_values_B3HW: Tensor,
        mask_labels: Sequence[Tensor] | None = None,
        class_labels: Sequence[Tensor] | None = None,
        output_hidden_states: bool = False,
        output_auxiliary_logits: bool | None = None,
        *,
        output_queries: bool = False,
    ) -> SegmentationOutput:
        """pixel_values_B3HW: RGB, normalised, float32, padded at the right and bottom; any height and width.

        Padding is not masked inside the network: the same image padded to another size gives another result.

        With `mask_labels` (bool [N, H, W] for each image) and `class_labels` (int64 [N]) the output has a loss: of
        every prediction of the decoder, or of the last one if the configuration has `use_auxiliary_loss` = false.
        `output_auxiliary_logits` = None means the configuration's value.
        """
        self.check_labels(mask_labels, class_labels)
        if output_auxiliary_logits is None:
            output_auxiliary_logits = bool(self.config.output_auxiliary_logits)
        deep_supervision = mask_labels is not None and self.config.use_auxiliary_loss

        features, mask_features_BChw, maps, predictions = self.decode(
            pixel_values_B3HW, every_prediction=deep_supervision or output_auxiliary_logits or output_hidden_states
        )
        *earlier, last = [self.logits(prediction) for prediction in predictions]
        output = SegmentationOutput(last["class_queries_logits"], last["masks_queries_logits"])
        if output_queries:
            output.queries = predictions[-1].queries
        if output_auxiliary_logits:
            output.auxiliary_logits = earlier
        if output_hidden_states:
            output.encoder_last_hidden_state = features[-1]
            output.encoder_hidden_states = tuple(features)
            output.pixel_decoder_last_hidden_state = mask_features_BChw
            output.pixel_decoder_hidden_states = tuple(maps)
            output.transformer_decoder_last_hidden_state = predictions[-1].states.transpose(0, 1)
            output.transformer_decoder_hidden_states = tuple(p.states for p in predictions)
        self.add_losses(output, earlier if deep_supervision else [], mask_labels, class_labels)
        return output

    def repeated_blocks(self) -> Sequence[nn.Module]:
        kinds = (SwinBlock, BasicBlock, Bottleneck, DeformableEncoderLayer, DecoderLayer)
        return [module for module in self.modules() if isinstance(module, kinds)]

    def parts_in_8_bits(self) -> Sequence[nn.Module]:
        # Not the transformer decoder, which decides on classes and masks with few queries.
        return (self.pixel_decoder,) if isinstance(self.backbone, ResNet) else (self.backbone, self.pixel_decoder)

    def convolutional_parts(self) -> Sequence[nn.Module]:
        # Not a ResNet's: its maps have their rows last in memory, and oneDNN's own convolution is as fast for them.
        return (self.pixel_decoder, self.transformer_decoder)

    def decode(self, pixel_values_B3HW: Tensor, every_prediction: bool, with_attention: bool = False) -> Decoded:
        """Everything before the class head; see `TransformerDecoder.forward` for the last two arguments."""
        features = self.backbone(pixel_values_B3HW)
        mask_features_BChw, maps = self.pixel_decoder(features)
        predictions = self.transformer_decoder(mask_features_BChw, maps, every_prediction, with_attention)
        return Decoded(features, mask_features_BChw, maps, predictions)

    def logits(self, prediction: QueryPrediction) -> dict[str, Tensor]:
        """Class and mask logits of a prediction, float32, under their names in `SegmentationOutput`."""
        return {
            "class_queries_logits": self.class_predictor(prediction.queries).float(),
            "masks_queries_logits": prediction.mask_logits.float(),
        }


def build_model(config: Mask2FormerConfig) -> Mask2Former:
    """The model with PyTorch's own initial weights, in training mode; `load_checkpoint` gives a trained one."""
    return Mask2Former(
        config=config,
        backbone=build_backbone(config.backbone_config),
        pixel_decoder=PixelDecoder(
            in_channels=config.backbone_config.feature_channels,
            feature_size=config.feature_size,
            mask_feature_size=config.mask_feature_size,
            num_layers=config.encoder_layers,
            num_heads=config.num_attention_heads,
            feedforward_dim=config.encoder_feedforward_dim,
            dropout=config.dropout,
        ),
        transformer_decoder=TransformerDecoder(
            feature_size=config.feature_size,
            mask_feature_size=config.mask_feature_size,
            hidden_dim=config.hidden_dim,
            num_queries=config.num_queries,
            num_layers=config.decoder_layers - 1,
            num_heads=config.num_attention_heads,
            feedforward_dim=config.dim_feedforward,
            activation=ACTIVATIONS[config.activation_function],
            dropout=config.dropout,
            pre_norm=config.pre_norm,
            enforce_input_projection=config.enforce_input_projection,
        ),
        class_predictor=nn.Linear(config.hidden_dim, config.num_labels + 1),
        criterion=build_criterion(config),
    )


def build_criterion(config: Mask2FormerConfig, rand: Rand = torch.rand) -> Criterion:
    """The loss of a model; `rand` draws the points at which masks are compared."""
    return Criterion(
        weights=LossWeights(config.class_weight, config.mask_weight, config.dice_weight),
        no_object_weight=config.no_object_weight,
        num_points=config.train_num_points,
        oversample_ratio=config.oversample_ratio,
        importance_sample_ratio=config.importance_sample_ratio,
        rand=rand,
    )
