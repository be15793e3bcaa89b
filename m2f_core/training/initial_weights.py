"""Initial weights for training from scratch, drawn at random as in the original code.

PyTorch's own initial weights would train too, but more slowly: above all, deformable attention must start by looking
around each token in eight directions. Sources: `swin.py`, `msdeformattn.py`, `ms_deform_attn.py` and
`mask2former_transformer_decoder.py` of https://github.com/facebookresearch/Mask2Former, `resnet.py` of detectron2.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import init

from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.layers.deformable_attention import DeformableAttention
from m2f_core.model.contract import SegmentationModel
from m2f_core.model.mask2former import Mask2Former, build_model
from m2f_core.model.pixel_decoder import PixelDecoder
from m2f_core.model.resnet import BasicBlock, Bottleneck, ResNet
from m2f_core.model.swin import SwinTransformer, WindowAttention
from m2f_core.model.transformer_decoder import TransformerDecoder

SWIN_STD = 0.02


def initial_model(config: Mask2FormerConfig, seed: int) -> Mask2Former:
    """A model in training mode that depends on the seed only, not on the global random state.

    A ResNet's frozen batch norms start as the identity. A ResNet is meant to start from a checkpoint, but it also
    trains from scratch: see `_start_resnet`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config)
        with torch.no_grad():
            start_backbone(model.backbone)
            assert isinstance(model.pixel_decoder, PixelDecoder)
            assert isinstance(model.transformer_decoder, TransformerDecoder)
            _start_pixel_decoder(model.pixel_decoder)
            _start_transformer_decoder(model.transformer_decoder, config.init_xavier_std)
    return model.train()


def new_class_predictor(model: SegmentationModel, num_labels: int, seed: int) -> None:
    """Replace the class head by a new one for `num_labels` classes and "no object", with PyTorch's initial weights."""
    assert isinstance(model.class_predictor, nn.Linear)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.class_predictor = nn.Linear(model.class_predictor.in_features, num_labels + 1)


def reorder_class_predictor(model: SegmentationModel, class_ids: Sequence[int]) -> None:
    """Reorder the head: its new class i is the old class `class_ids[i]`; "no object" stays last."""
    assert isinstance(model.class_predictor, nn.Linear)
    rows = [*class_ids, model.class_predictor.out_features - 1]
    with torch.no_grad():
        for parameter in model.class_predictor.parameters():
            parameter.copy_(parameter[rows])


def start_backbone(backbone: nn.Module) -> None:
    """In place, without gradient, from the global random state."""
    if isinstance(backbone, SwinTransformer):
        _start_swin(backbone)
    elif isinstance(backbone, ResNet):
        _start_resnet(backbone)


def _start_swin(backbone: SwinTransformer) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=SWIN_STD)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, WindowAttention):
            init.trunc_normal_(module.relative_position_bias_table, std=SWIN_STD)


def _start_resnet(backbone: ResNet) -> None:
    """He's initialisation. A block's output is scaled down, because a frozen norm does not scale; the sum of L blocks
    stays as large as one block (Zhang et al. 2019, "Fixup Initialization").
    """
    blocks = [module for module in backbone.modules() if isinstance(module, BasicBlock | Bottleneck)]
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for block in blocks:
        block.last.conv.weight.mul_(len(blocks) ** -0.5)


def _start_pixel_decoder(decoder: PixelDecoder) -> None:
    _xavier(decoder.layers)
    for module in decoder.layers.modules():
        if isinstance(module, DeformableAttention):
            _look_around(module)
    for module in decoder.input_projections.modules():
        if isinstance(module, nn.Conv2d):
            init.xavier_uniform_(module.weight)
            assert module.bias is not None
            init.zeros_(module.bias)
    for conv in (decoder.lateral.conv, decoder.output.conv, decoder.mask_projection):
        caffe2_xavier_fill(conv)


def caffe2_xavier_fill(conv: nn.Conv2d) -> None:
    init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        init.zeros_(conv.bias)


def _start_transformer_decoder(decoder: TransformerDecoder, gain: float) -> None:
    """Queries and level embeddings already come from a normal distribution; linear heads keep PyTorch's weights.

    Input projections, where there are any, start as in transformers; the original has Caffe2's XavierFill there.
    """
    _xavier(decoder.layers, gain)
    for module in decoder.input_projections:
        if isinstance(module, nn.Conv2d):
            init.xavier_uniform_(module.weight, gain)
            assert module.bias is not None
            init.zeros_(module.bias)


def _xavier(module: nn.Module, gain: float = 1.0) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            init.xavier_uniform_(parameter, gain)


def _look_around(attention: DeformableAttention) -> None:
    """Head m looks in direction 2 pi m / M, with point p at a distance of p + 1 cells; all points have equal weight."""
    heads, levels, points = attention.num_heads, attention.num_levels, attention.num_points
    angle_M = torch.arange(heads) * (2.0 * math.pi / heads)
    direction_M2 = torch.stack((angle_M.cos(), angle_M.sin()), dim=-1)
    direction_M2 /= direction_M2.abs().amax(dim=1, keepdim=True)  # scaled to a square, so that steps are whole cells
    steps_P = torch.arange(1, points + 1)
    offsets_MLP2 = direction_M2[:, None, None] * steps_P[None, None, :, None].expand(heads, levels, points, 1)
    init.zeros_(attention.sampling_offsets.weight)
    attention.sampling_offsets.bias.copy_(offsets_MLP2.flatten())
    init.zeros_(attention.attention_weights.weight)
    init.zeros_(attention.attention_weights.bias)
    for linear in (attention.value_proj, attention.output_proj):
        init.xavier_uniform_(linear.weight)
        init.zeros_(linear.bias)
