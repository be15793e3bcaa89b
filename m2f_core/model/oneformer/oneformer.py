"""OneFormer: the flow through its parts, and the builder that passes every number to them.

Legend: B batch, Q query, D width of the decoder, H W pixels of the normalised (and padded) image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from m2f_core.config.labels import Task
from m2f_core.config.oneformer import OneFormerConfig
from m2f_core.model.backbones import build_backbone
from m2f_core.model.contract import SegmentationModel, SegmentationOutput
from m2f_core.model.oneformer.query_transformer import QueryTransformer
from m2f_core.model.oneformer.task_encoder import TaskEncoder
from m2f_core.model.pixel_decoder import PixelDecoder
from m2f_core.model.transformer_decoder import TransformerDecoder


class OneFormer(SegmentationModel):
    """Jain et al., "OneFormer: One Transformer to Rule Universal Image Segmentation" (2023), at inference.

    Backbone, pixel decoder and masked decoder are Mask2Former's. What differs is where the queries start: the query
    transformer makes them of the task and the image, and the task itself is the last query.
    """

    config: OneFormerConfig

    def __init__(
        self,
        config: OneFormerConfig,
        backbone: nn.Module,
        pixel_decoder: nn.Module,
        task_encoder: TaskEncoder,
        query_transformer: nn.Module,
        transformer_decoder: TransformerDecoder,
        class_predictor: nn.Module,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.task_encoder = task_encoder
        self.query_transformer = query_transformer
        self.transformer_decoder = transformer_decoder
        self.class_predictor = class_predictor
        self.criterion = None

    def forward(
        self,
        pixel_values_B3HW: Tensor,
        mask_labels: Sequence[Tensor] | None = None,
        class_labels: Sequence[Tensor] | None = None,
        *,
        output_queries: bool = False,
    ) -> SegmentationOutput:
        """pixel_values_B3HW: RGB, normalised, float32, padded at the right and bottom; any height and width.

        Padding is not masked inside the network: the same image padded to another size gives another result.
        ValueError for labels, because there is no loss.
        """
        if mask_labels is not None or class_labels is not None:
            raise ValueError("a OneFormer has no loss here, so it takes no labels")
        mask_features_BDhw, maps = self.pixel_decoder(self.backbone(pixel_values_B3HW))
        start_BQD = self.start(mask_features_BDhw)
        [prediction] = self.transformer_decoder(mask_features_BDhw, maps, start_BQD=start_BQD)
        return SegmentationOutput(
            class_queries_logits=self.class_predictor(prediction.queries).float(),
            masks_queries_logits=prediction.mask_logits.float(),
            queries=prediction.queries if output_queries else None,
        )

    def start(self, mask_features_BDhw: Tensor) -> Tensor:
        """The states of the queries before the masked decoder, [B, Q, D]; the last one is the task."""
        task_1D = self.task_encoder()
        if self.config.use_task_norm:
            task_1D = self.transformer_decoder.output_norm(task_1D)
        # As in the original, the task reaches the query transformer only if it is normalised.
        first_1D = task_1D if self.config.use_task_norm else torch.zeros_like(task_1D)
        positions_QD = self.transformer_decoder.query_positions[:-1]
        queries_BQD = self.query_transformer(first_1D, positions_QD, mask_features_BDhw)
        return torch.cat((queries_BQD, task_1D.expand(queries_BQD.shape[0], 1, -1)), dim=1)

    def set_task(self, task: Task) -> None:
        self.task_encoder.set_task(task)

    def convolutional_parts(self) -> Sequence[nn.Module]:
        # Not a ResNet's: its maps have their rows last in memory, and oneDNN's own convolution is as fast for them.
        return (self.pixel_decoder, self.query_transformer)


def build_model(config: OneFormerConfig) -> OneFormer:
    """The model with PyTorch's own initial weights, asked for panoptic segmentation, in training mode."""
    dim, heads = config.hidden_dim, config.num_attention_heads
    model = OneFormer(
        config=config,
        backbone=build_backbone(config.backbone_config),
        pixel_decoder=PixelDecoder(
            in_channels=config.backbone_config.feature_channels,
            feature_size=config.conv_dim,
            mask_feature_size=config.mask_dim,
            num_layers=config.encoder_layers,
            num_heads=heads,
            feedforward_dim=config.encoder_feedforward_dim,
            dropout=0.0,
        ),
        task_encoder=TaskEncoder(config.task_seq_len, dim),
        query_transformer=QueryTransformer(
            dim, config.query_dec_layers, heads, config.dim_feedforward, config.pre_norm
        ),
        transformer_decoder=TransformerDecoder(
            feature_size=config.conv_dim,
            mask_feature_size=config.mask_dim,
            hidden_dim=dim,
            num_queries=config.num_queries,
            num_layers=config.decoder_layers - 1,
            num_heads=heads,
            feedforward_dim=config.dim_feedforward,
            activation=torch.nn.functional.relu,
            dropout=0.0,
            pre_norm=config.pre_norm,
            enforce_input_projection=False,
            learned_start=False,
        ),
        class_predictor=nn.Linear(dim, config.num_labels + 1),
    )
    for part in (model.pixel_decoder, model.query_transformer, model.transformer_decoder):
        for module in part.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.layer_norm_eps
    return model
