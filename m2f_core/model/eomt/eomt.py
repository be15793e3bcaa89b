"""EoMT: the flow through a plain vision transformer that also reads queries, and the builder of its parts.

Legend: B batch, Q query, K classes, N tokens, P patches, D channels, S pixels of a side of the image, h w cells of a
mask.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2f_core.config.eomt import EomtConfig
from m2f_core.layers.activations import ACTIVATIONS
from m2f_core.layers.initial_values import standard_normal
from m2f_core.layers.linear import ActivatedLinear
from m2f_core.model.contract import SegmentationModel, SegmentationOutput
from m2f_core.model.eomt.blocks import Attention, Block, FeedForward, GatedFeedForward
from m2f_core.model.eomt.upscale import UpscaleBlock


class PatchTokens(nn.Module):
    """An image -> its tokens: class token, registers, and a token for each patch with its learned position."""

    def __init__(self, dim: int, patch_size: int, num_registers: int, num_patches: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(standard_normal(1, 1, dim))
        self.registers = nn.Parameter(standard_normal(1, num_registers, dim))
        self.patches = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)
        self.positions = nn.Parameter(standard_normal(num_patches, dim))

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """[B, 1 + registers + P, D]"""
        patches_BPD = self.patches(pixels_B3SS).flatten(2).transpose(1, 2) + self.positions
        own = (tokens.expand(patches_BPD.shape[0], -1, -1) for tokens in (self.class_token, self.registers))
        return torch.cat([*own, patches_BPD], dim=1)


class Eomt(SegmentationModel):
    """Kerssies et al., "Your ViT is Secretly an Image Segmentation Model" (2025).

    In the last `num_blocks` blocks the queries are tokens beside the patches. While a model is trained, the masks of
    the block before decide which patches a query may read, less and less often: `attn_mask_probs` holds how often, for
    each of these blocks. It ends at 0, where no mask is computed; a model that was trained without this end keeps 1.
    """

    config: EomtConfig

    def __init__(
        self,
        config: EomtConfig,
        tokens: nn.Module,
        blocks: Sequence[nn.Module],
        upscale: Sequence[nn.Module],
        mask_head: nn.Module,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokens = tokens
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.queries = nn.Parameter(standard_normal(config.num_queries, config.hidden_size))
        self.upscale = nn.Sequential(*upscale)
        self.mask_head = mask_head
        self.class_predictor = nn.Linear(config.hidden_size, config.num_labels + 1)
        self.criterion = None
        self.attn_mask_probs = nn.Buffer(torch.ones(config.num_blocks))
        self.reads_masks = [True] * config.num_blocks  # on the host, so that no pass waits for a device to read it
        self.register_load_state_dict_post_hook(_read_mask_probs)

    def forward(
        self,
        pixel_values_B3HW: Tensor,
        mask_labels: Sequence[Tensor] | None = None,
        class_labels: Sequence[Tensor] | None = None,
        *,
        output_queries: bool = False,
    ) -> SegmentationOutput:
        """pixel_values_B3HW: RGB, normalised, float32, of the configuration's `image_size` in height and width."""
        if mask_labels is not None or class_labels is not None:
            raise ValueError("an EoMT has no loss here, so it takes no labels; fine-tune it with transformers")
        side = self.config.image_size
        if pixel_values_B3HW.shape[2:] != (side, side):
            raise ValueError(f"the image has {tuple(pixel_values_B3HW.shape[2:])} pixels, but the model takes {side}")
        x_BND = self.tokens(pixel_values_B3HW)
        num_queries, num_plain = self.config.num_queries, len(self.blocks) - self.config.num_blocks
        for block in self.blocks[:num_plain]:
            x_BND = block(x_BND)
        x_BND = torch.cat([self.queries.expand(x_BND.shape[0], -1, -1), x_BND], dim=1)
        may_attend_BNN = None
        for block, reads_mask in zip(self.blocks[num_plain:], self.reads_masks, strict=True):
            if reads_mask:  # else the mask of a block before stays, as in transformers
                may_attend_BNN = self._may_attend(x_BND)
            x_BND = block(x_BND, may_attend_BNN)
        x_BND = self.norm(x_BND)
        output = SegmentationOutput(self.class_predictor(x_BND[:, :num_queries]).float(), self._masks(x_BND).float())
        if output_queries:
            output.queries = x_BND[:, :num_queries]
        return output

    def _masks(self, x_BND: Tensor) -> Tensor:
        """Mask logits [B, Q, h, w] of normalised tokens."""
        side, num_queries = self.config.grid_side, self.config.num_queries
        patches_BPD = x_BND[:, -(side * side) :]
        map_BhwD = self.upscale(patches_BPD.unflatten(1, (side, side)))
        queries_BQD = self.mask_head(x_BND[:, :num_queries])
        masks: Tensor = queries_BQD @ map_BhwD.flatten(1, 2).transpose(1, 2)
        return masks.unflatten(2, map_BhwD.shape[1:3])

    def _may_attend(self, x_BND: Tensor) -> Tensor:
        """Which token may read which, [B, N, N]: a query reads only patches inside of its mask."""
        side = self.config.grid_side
        masks = F.interpolate(self._masks(self.norm(x_BND)), size=(side, side), mode="bilinear")
        batch, num_tokens = x_BND.shape[:2]
        may_attend_BNN = torch.ones(batch, num_tokens, num_tokens, dtype=torch.bool, device=x_BND.device)
        may_attend_BNN[:, : self.config.num_queries, -(side * side) :] = masks.flatten(2) > 0
        return may_attend_BNN


def _read_mask_probs(model: Eomt, _: object) -> None:
    """Learn from a checkpoint which blocks mask. ValueError if one masks sometimes: its results would be random."""
    if model.attn_mask_probs.is_meta:
        return
    probs = model.attn_mask_probs.tolist()
    if any(prob not in (0.0, 1.0) for prob in probs):
        raise ValueError(
            f"attn_mask_probs has {probs}: the training stopped while it was still turning masked attention off, so "
            "transformers would mask at random; set each of these numbers to 0 or to 1"
        )
    model.reads_masks = [prob > 0 for prob in probs]


def build_model(config: EomtConfig) -> Eomt:
    """The model with PyTorch's own initial weights, in training mode; `load_checkpoint` gives a trained one."""
    dim, activation = config.hidden_size, ACTIVATIONS[config.hidden_act]

    def feedforward() -> nn.Module:
        if config.use_swiglu_ffn:
            return GatedFeedForward(dim, config.mlp_width)
        return FeedForward(dim, config.mlp_width, activation)

    return Eomt(
        config=config,
        tokens=PatchTokens(dim, config.patch_size, config.num_register_tokens, config.grid_side**2),
        blocks=[
            Block(dim, Attention(dim, config.num_attention_heads), feedforward(), config.layer_norm_eps)
            for _ in range(config.num_hidden_layers)
        ],
        upscale=[UpscaleBlock(dim, activation) for _ in range(config.num_upscale_blocks)],
        mask_head=nn.Sequential(
            ActivatedLinear(dim, dim, activation), ActivatedLinear(dim, dim, activation), nn.Linear(dim, dim)
        ),
    )
