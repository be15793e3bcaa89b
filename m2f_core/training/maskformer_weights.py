"""A MaskFormer's initial weights for training from scratch, drawn at random as in the original code.

Sources: `pixel_decoder.py`, `transformer.py` and `transformer_predictor.py` of
https://github.com/facebookresearch/MaskFormer.
"""

import torch
from torch import nn
from torch.nn import init

from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.model.maskformer.maskformer import MaskFormer, build_model
from m2f_core.model.maskformer.transformer_decoder import TransformerDecoder
from m2f_core.model.transformer_decoder import Attention
from m2f_core.training.initial_weights import caffe2_xavier_fill, start_backbone

# There q, k and v are one matrix of three times as many rows, and Xavier's bound falls with their number.
ONE_OF_THREE = 0.5**0.5


def initial_maskformer(config: MaskFormerConfig, seed: int) -> MaskFormer:
    """A model in training mode that depends on the seed only, not on the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config)
        with torch.no_grad():
            start_backbone(model.backbone)
            for module in model.pixel_decoder.modules():
                if isinstance(module, nn.Conv2d):
                    caffe2_xavier_fill(module)
            assert isinstance(model.transformer_decoder, TransformerDecoder)
            _start_transformer_decoder(model.transformer_decoder, config.init_xavier_std)
    return model.train()


def _start_transformer_decoder(decoder: TransformerDecoder, gain: float) -> None:
    """Query positions already come from a normal distribution; the mask embedder keeps PyTorch's weights."""
    for parameter in decoder.layers.parameters():
        if parameter.dim() > 1:
            init.xavier_uniform_(parameter, gain)
    for module in decoder.layers.modules():
        if isinstance(module, Attention):
            for linear in (module.q_proj, module.k_proj, module.v_proj):
                linear.weight.mul_(ONE_OF_THREE)
                init.zeros_(linear.bias)
            init.zeros_(module.out_proj.bias)
    if isinstance(decoder.input_projection, nn.Conv2d):
        caffe2_xavier_fill(decoder.input_projection)
