"""An EoMT's initial weights for training from scratch.

The authors start from a DINOv2. Without one, linear layers and convolutions keep PyTorch's own weights, as in
transformers' `EomtPreTrainedModel._init_weights`, and tokens and positions start small, as in DINOv2's own code
(`dinov2/models/vision_transformer.py` of https://github.com/facebookresearch/dinov2).
"""

import torch
from torch.nn import init

from m2f_core.config.eomt import PlainTransformerConfig
from m2f_core.model.eomt.blocks import Block
from m2f_core.model.eomt.eomt import Eomt, PatchTokens, build_model


def initial_eomt(config: PlainTransformerConfig, seed: int) -> Eomt:
    """A model in training mode that depends on the seed only, not on the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config)
        with torch.no_grad():
            assert isinstance(model.tokens, PatchTokens)
            init.trunc_normal_(model.tokens.class_token, std=config.initializer_range)
            if model.tokens.positions is not None:
                init.trunc_normal_(model.tokens.positions, std=config.initializer_range)
            init.zeros_(model.tokens.registers)
            for block in model.blocks:
                assert isinstance(block, Block)
                init.constant_(block.scale1, config.layerscale_value)
                init.constant_(block.scale2, config.layerscale_value)
    return model.train()
