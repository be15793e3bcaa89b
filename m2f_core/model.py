"""Mask2Former: the page that spells the flow, and the builder that spells every number.

Legend: B batch, Q query, K classes, H W pixels of the normalised (and padded) image, h w cells at stride 4:
h = ceil(H / 4), w = ceil(W / 4).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from m2f_core.backbone_config import BackboneConfig, ResNetConfig
from m2f_core.config import Mask2FormerConfig
from m2f_core.pixel_decoder import PixelDecoder
from m2f_core.resnet import ResNet
from m2f_core.swin import SwinTransformer
from m2f_core.transformer_decoder import TransformerDecoder

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


@dataclass
class Mask2FormerOutput:
    """Both float32, also under autocast.

    pred_logits: [B, Q, K+1] class logits, the last one for "no object".
    pred_masks: [B, Q, h, w] mask logits over the padded image; a cell is on where its logit is at least 0.
    """

    pred_logits: Tensor
    pred_masks: Tensor


class Mask2Former(nn.Module):
    """Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation" (2022).

    The parts are handed in, `build_model` makes them. `config` says what they were made from; forward never reads it.
    """

    def __init__(
        self,
        config: Mask2FormerConfig,
        backbone: nn.Module,
        pixel_decoder: nn.Module,
        transformer_decoder: nn.Module,
        class_predictor: nn.Module,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.transformer_decoder = transformer_decoder
        self.class_predictor = class_predictor

    def forward(self, pixel_values_B3HW: Tensor) -> Mask2FormerOutput:
        """pixel_values_B3HW: RGB, normalised, float32, padded at the right and bottom; any height and width.

        Padding is not masked inside of the network: the same image padded to another size gives another answer.
        """
        features = self.backbone(pixel_values_B3HW)
        mask_features_BChw, maps = self.pixel_decoder(features)
        last = self.transformer_decoder(mask_features_BChw, maps)[-1]
        return Mask2FormerOutput(
            pred_logits=self.class_predictor(last.queries).float(),
            pred_masks=last.mask_logits.float(),
        )


def build_backbone(config: BackboneConfig) -> SwinTransformer | ResNet:
    """An image -> four feature maps, with `config.feature_channels` and `config.feature_strides`."""
    if isinstance(config, ResNetConfig):
        return ResNet(
            embedding_size=config.embedding_size,
            hidden_sizes=config.hidden_sizes,
            depths=config.depths,
            downsample_in_bottleneck=config.downsample_in_bottleneck,
            activation=ACTIVATIONS[config.hidden_act],
        )
    return SwinTransformer(
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        window_size=config.window_size,
        patch_size=config.patch_size,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        layer_norm_eps=config.layer_norm_eps,
        drop_path_rate=config.drop_path_rate,
        activation=ACTIVATIONS[config.hidden_act],
    )


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
            pre_norm=config.pre_norm,
            enforce_input_projection=config.enforce_input_projection,
        ),
        class_predictor=nn.Linear(config.hidden_dim, config.num_labels + 1),
    )
