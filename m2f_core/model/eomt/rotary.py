"""Where a patch lies, as angles by which attention turns its queries and keys: rotary positions of DINOv3.

Simeoni et al., "DINOv3" (2025), section 3.2; dinov3/layers/rope_position_encoding.py of
https://github.com/facebookresearch/dinov3, `EomtDinov3RotaryEmbedding` of transformers.

Legend: P patches, E channels of a head.
"""

import math

import torch
from torch import Tensor, nn

from m2f_core.config.eomt_dinov3 import EomtDinov3Config


class RotaryPositions(nn.Module):
    """Cosine and sine for each patch of the square and each channel of a head."""

    def __init__(self, config: EomtDinov3Config) -> None:
        super().__init__()
        self.grid_side = config.grid_side
        self.theta = config.rope_theta
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.shift, self.jitter = config.pos_embed_shift, config.pos_embed_jitter
        self.rescale = config.pos_embed_rescale

    def forward(self, device: torch.device) -> Tensor:
        """float32 [2, P, E]. In training mode places are shifted and stretched at random, all in the same way."""
        line = (torch.arange(0.5, self.grid_side, dtype=torch.float32, device=device) / self.grid_side) * 2.0 - 1.0
        places_P2 = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).flatten(0, 1)
        if self.training:
            places_P2 = self._moved(places_P2)
        speeds = 1 / self.theta ** torch.arange(0, 1, 4 / self.head_dim, dtype=torch.float32, device=device)
        angles_PE = (2 * math.pi * places_P2[:, :, None] * speeds).flatten(1).tile(2)
        return torch.stack((angles_PE.cos(), angles_PE.sin()))

    def _moved(self, places_P2: Tensor) -> Tensor:
        """Random numbers have the order of transformers' `augment_patches_center_coordinates`."""
        if self.shift is not None:
            places_P2 = places_P2 + places_P2.new_empty((1, 2)).uniform_(-self.shift, self.shift)
        for most, size in ((self.jitter, (1, 2)), (self.rescale, (1,))):
            if most is not None:
                places_P2 = places_P2 * places_P2.new_empty(size).uniform_(-math.log(most), math.log(most)).exp()
        return places_P2
