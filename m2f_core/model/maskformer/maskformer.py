"""MaskFormer: the flow through its parts, and the builder that passes every number to them.

Legend: B batch, Q query, K classes, D width of a query, F channels of the fine map, C mask channels, k size of a
kernel, H W pixels of the normalised (and padded) image, h w cells at stride 4: h = ceil(H / 4), w = ceil(W / 4).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.layers.activations import ACTIVATIONS
from m2f_core.losses.full_masks import FullMaskCriterion
from m2f_core.losses.matcher import LossWeights
from m2f_core.model.backbones import build_backbone
from m2f_core.model.contract import SegmentationModel, SegmentationOutput
from m2f_core.model.maskformer.pixel_decoder import PixelDecoder, PyramidStep
from m2f_core.model.maskformer.transformer_decoder import DecoderLayer, TransformerDecoder
from m2f_core.model.resnet import BasicBlock, Bottleneck
from m2f_core.model.swin import SwinBlock


class MaskFormer(SegmentationModel):
    """Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation" (2021).

    `build_model` makes the parts and passes them in. `forward` reads from `config` only which predictions are wanted.
    """

    config: MaskFormerConfig

    def __init__(
        self,
        config: MaskFormerConfig,
        backbone: nn.Module,
        pixel_decoder: PixelDecoder,
        transformer_decoder: TransformerDecoder,
        class_predictor: nn.Module,
        criterion: FullMaskCriterion,
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
        output_auxiliary_logits: bool | None = None,
        *,
        output_queries: bool = False,
    ) -> SegmentationOutput:
        """pixel_values_B3HW: RGB, normalised, float32, padded at the right and bottom; any height and width.

        Padding is not masked inside the network, as in the original and in transformers, which reads no `pixel_mask`:
        the same image padded to another size gives another result.

        With `mask_labels` (bool [N, H, W] for each image) and `class_labels` (int64 [N]) the output has a loss: of the
        last prediction, or of every layer's if the configuration has `use_auxiliary_loss`. `output_auxiliary_logits` =
        None means the configuration's value.
        """
        self.check_labels(mask_labels, class_labels)
        if output_auxiliary_logits is None:
            output_auxiliary_logits = bool(self.config.output_auxiliary_logits)
        deep_supervision = mask_labels is not None and self.config.use_auxiliary_loss

        features = self.backbone(pixel_values_B3HW)
        fine_BFhw = self.pixel_decoder(features)
        states = self.transformer_decoder(features[-1], every_prediction=deep_supervision or output_auxiliary_logits)
        # Not in an exported program, where a loop over the images would fix their number.
        if len(states) == 1 and not torch.is_grad_enabled() and not torch.compiler.is_exporting():
            last, earlier = self.logits_at_once(states[0], fine_BFhw), []
        else:
            mask_features_BChw = self.pixel_decoder.mask_projection(fine_BFhw)
            *earlier, last = [self.logits(queries_BQD, mask_features_BChw) for queries_BQD in states]
        output = SegmentationOutput(last["class_queries_logits"], last["masks_queries_logits"])
        if output_queries:
            output.queries = states[-1]
        if output_auxiliary_logits:
            output.auxiliary_logits = earlier
        self.add_losses(output, earlier if deep_supervision else [], mask_labels, class_labels)
        return output

    def convolutional_parts(self) -> Sequence[nn.Module]:
        return (self.pixel_decoder, self.transformer_decoder)

    def repeated_blocks(self) -> Sequence[nn.Module]:
        kinds = (SwinBlock, BasicBlock, Bottleneck, PyramidStep, DecoderLayer)
        return [module for module in self.modules() if isinstance(module, kinds)]

    def logits(self, queries_BQD: Tensor, mask_features_BChw: Tensor) -> dict[str, Tensor]:
        """Class and mask logits of normalised states, float32, under their names in `SegmentationOutput`."""
        embeddings_BQC = self.transformer_decoder.mask_embedder(queries_BQD)
        masks_BQhw = torch.einsum("bqc,bchw->bqhw", embeddings_BQC, mask_features_BChw)
        return self._named(queries_BQD, masks_BQhw)

    def logits_at_once(self, queries_BQD: Tensor, fine_BFhw: Tensor) -> dict[str, Tensor]:
        """`logits` from the fine map before its projection.

        Projection and product are both linear. Joined, they are one convolution with a kernel for each query, of which
        there are fewer than mask channels in every published model: a tenth less time for the whole model on a CPU.
        """
        project = self.pixel_decoder.mask_projection
        embeddings_BQC = self.transformer_decoder.mask_embedder(queries_BQD)
        if embeddings_BQC.shape[1] > project.out_channels:
            return self.logits(queries_BQD, project(fine_BFhw))
        assert project.bias is not None
        with torch.autocast(fine_BFhw.device.type, enabled=False):  # rounded once, not twice
            embeddings_BQC, weight_CFkk = embeddings_BQC.float(), project.weight.float()
            kernels_BQFkk = torch.einsum("bqc,cfkl->bqfkl", embeddings_BQC, weight_CFkk)
            bias_BQ = embeddings_BQC @ project.bias.float()
        masks_BQhw = torch.cat(
            [
                F.conv2d(fine_Fhw[None], kernels_QFkk, bias_Q, padding=project.padding)
                for fine_Fhw, kernels_QFkk, bias_Q in zip(fine_BFhw, kernels_BQFkk, bias_BQ, strict=True)
            ]
        )
        return self._named(queries_BQD, masks_BQhw)

    def _named(self, queries_BQD: Tensor, masks_BQhw: Tensor) -> dict[str, Tensor]:
        return {
            "class_queries_logits": self.class_predictor(queries_BQD).float(),
            "masks_queries_logits": masks_BQhw.float(),
        }


def build_model(config: MaskFormerConfig) -> MaskFormer:
    """The model with PyTorch's own initial weights, in training mode; `load_checkpoint` gives a trained one."""
    decoder, channels = config.decoder_config, config.backbone_config.feature_channels
    return MaskFormer(
        config=config,
        backbone=build_backbone(config.backbone_config),
        pixel_decoder=PixelDecoder(channels, config.fpn_feature_size, config.mask_feature_size),
        transformer_decoder=TransformerDecoder(
            feature_size=channels[-1],
            mask_feature_size=config.mask_feature_size,
            hidden_dim=decoder.d_model,
            num_queries=decoder.num_queries,
            num_layers=decoder.decoder_layers,
            num_heads=decoder.decoder_attention_heads,
            feedforward_dim=decoder.decoder_ffn_dim,
            activation=ACTIVATIONS[decoder.activation_function],
            dropout=decoder.dropout,
            attention_dropout=decoder.attention_dropout,
            activation_dropout=decoder.activation_dropout,
        ),
        class_predictor=nn.Linear(decoder.d_model, config.num_labels + 1),
        criterion=build_criterion(config),
    )


def build_criterion(config: MaskFormerConfig) -> FullMaskCriterion:
    """The loss of a model."""
    return FullMaskCriterion(
        weights=LossWeights(config.cross_entropy_weight, config.mask_weight, config.dice_weight),
        no_object_weight=config.no_object_weight,
    )
