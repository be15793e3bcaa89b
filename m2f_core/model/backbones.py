"""The builder of the backbones that several families share."""

from m2f_core.config.backbones import BackboneConfig, ResNetConfig
from m2f_core.layers.activations import ACTIVATIONS
from m2f_core.model.resnet import ResNet
from m2f_core.model.swin import SwinTransformer


def build_backbone(config: BackboneConfig) -> SwinTransformer | ResNet:
    """An image -> four feature maps, with `config.feature_channels` and `config.feature_strides`."""
    if isinstance(config, ResNetConfig):
        return ResNet(
            embedding_size=config.embedding_size,
            hidden_sizes=config.hidden_sizes,
            depths=config.depths,
            layer_type=config.layer_type,
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
