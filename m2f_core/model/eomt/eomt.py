"""EoMT: the flow through a plain vision transformer that also reads queries, and the builder of its parts.

Legend: B batch, Q query, K classes, N tokens, P patches, D channels, S pixels of a side of the image, h w cells of a
mask.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2f_core.config.eomt import EomtConfig, PlainTransformerConfig
from m2f_core.config.eomt_dinov3 import EomtDinov3Config
from m2f_core.layers.activations import ACTIVATIONS
from m2f_core.layers.initial_values import standard_normal
from m2f_core.layers.linear import ActivatedLinear
from m2f_core.losses.loss import Criterion
from m2f_core.losses.matcher import LossWeights
from m2f_core.losses.points import Rand
from m2f_core.model.contract import SegmentationModel, SegmentationOutput
from m2f_core.model.eomt.blocks import Attention, Block, FeedForward, GatedFeedForward
from m2f_core.model.eomt.rotary import RotaryPositions
from m2f_core.model.eomt.upscale import UpscaleBlock

# Of the whole training: masked attention fades out in the first block that reads queries from 1/6 on, in the last one
# from 4/6 on, and in each for 1/6, as in each of the authors' configs/dinov2/*/*/*.yaml.
_FIRST_FADES, _LAST_FADES, _FADING = 1 / 6, 4 / 6, 1 / 6
_FADING_POWER = 0.9
_MASKS_WHERE = 0.5  # outside of training a block masks if it does so for this share of the queries


class PatchTokens(nn.Module):
    """An image -> its tokens: class token, registers, and a token for each patch, with its position if it is learned.

    `num_patches`: of the learned positions; None if there are none.
    """

    def __init__(self, dim: int, patch_size: int, num_registers: int, num_patches: int | None) -> None:
        super().__init__()
        self.class_token = nn.Parameter(standard_normal(1, 1, dim))
        self.registers = nn.Parameter(standard_normal(1, num_registers, dim))
        self.patches = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)
        self.positions = None if num_patches is None else nn.Parameter(standard_normal(num_patches, dim))

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """[B, 1 + registers + P, D]"""
        patches_BPD = self.patches(pixels_B3SS).flatten(2).transpose(1, 2)
        if self.positions is not None:
            patches_BPD = patches_BPD + self.positions
        own = (tokens.expand(patches_BPD.shape[0], -1, -1) for tokens in (self.class_token, self.registers))
        return torch.cat([*own, patches_BPD], dim=1)


class Eomt(SegmentationModel):
    """Kerssies et al., "Your ViT is Secretly an Image Segmentation Model" (2025).

    In the last `num_blocks` blocks the queries are tokens beside the patches. While a model is trained, the masks of
    the block before decide which patches a query may read, less and less often: `mask_shares` holds for which share of
    the queries, for each of these blocks. It ends at 0, where a trained model computes no mask. `attn_mask_probs`,
    which files have, is 0 or 1, also halfway through a training: with another share, results would be random.
    """

    decays_all = True
    config: PlainTransformerConfig

    def __init__(
        self,
        config: PlainTransformerConfig,
        tokens: nn.Module,
        rotary: nn.Module | None,
        blocks: Sequence[nn.Module],
        upscale: Sequence[nn.Module],
        mask_head: nn.Module,
        criterion: Criterion,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokens = tokens
        self.rotary = rotary
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.queries = nn.Parameter(standard_normal(config.num_queries, config.hidden_size))
        self.upscale = nn.Sequential(*upscale)
        self.mask_head = mask_head
        self.class_predictor = nn.Linear(config.hidden_size, config.num_labels + 1)
        self.criterion = criterion
        self.attn_mask_probs = nn.Buffer(torch.ones(config.num_blocks))
        self.mask_shares = [1.0] * config.num_blocks  # on the host, so that no pass waits for a device to read it
        self.register_load_state_dict_post_hook(_read_mask_probs)

    def forward(
        self,
        pixel_values_B3HW: Tensor,
        mask_labels: Sequence[Tensor] | None = None,
        class_labels: Sequence[Tensor] | None = None,
        *,
        output_queries: bool = False,
    ) -> SegmentationOutput:
        """pixel_values_B3HW: RGB, normalised, float32, of the configuration's `image_size` in height and width.

        With `mask_labels` (bool [N, H, W] for each image) and `class_labels` (int64 [N]) the output has a loss: of the
        last prediction and, in training mode, of the one before each block that reads queries.
        """
        self.check_labels(mask_labels, class_labels)
        side = self.config.image_size
        if pixel_values_B3HW.shape[2:] != (side, side):
            raise ValueError(f"the image has {tuple(pixel_values_B3HW.shape[2:])} pixels, but the model takes {side}")
        x_BND = self.tokens(pixel_values_B3HW)
        turns_2PE = None if self.rotary is None else self.rotary(x_BND.device)
        num_queries, num_plain = self.config.num_queries, len(self.blocks) - self.config.num_blocks
        for block in self.blocks[:num_plain]:
            x_BND = block(x_BND, None, turns_2PE)
        x_BND = torch.cat([self.queries.expand(x_BND.shape[0], -1, -1), x_BND], dim=1)
        may_attend_BNN, earlier = None, []
        for block, share in zip(self.blocks[num_plain:], self.mask_shares, strict=True):
            if self.training:
                earlier.append(self._predict(self.norm(x_BND)))
                may_attend_BNN = self._may_attend(earlier[-1]["masks_queries_logits"], x_BND, share)
            elif share >= _MASKS_WHERE:  # else the mask of a block before stays, as in transformers
                may_attend_BNN = self._may_attend(self._masks(self.norm(x_BND)), x_BND)
            x_BND = block(x_BND, may_attend_BNN, turns_2PE)
        x_BND = self.norm(x_BND)
        last = self._predict(x_BND)
        output = SegmentationOutput(last["class_queries_logits"], last["masks_queries_logits"])
        if output_queries:
            output.queries = x_BND[:, :num_queries]
        self.add_losses(output, earlier, mask_labels, class_labels)
        return output

    def set_progress(self, share: float) -> None:
        """Let masked attention fade out. `mask_annealing` in the authors' training/lightning_module.py."""
        last = max(1, self.config.num_blocks - 1)
        starts = (_FIRST_FADES + (_LAST_FADES - _FIRST_FADES) * n / last for n in range(self.config.num_blocks))
        done = [min(1.0, max(0.0, (share - start) / _FADING)) for start in starts]
        self.mask_shares = [(1.0 - part) ** _FADING_POWER for part in done]
        masks = [float(part >= _MASKS_WHERE) for part in self.mask_shares]
        with torch.no_grad():
            self.attn_mask_probs.copy_(torch.tensor(masks))

    def rate_factor(self, name: str, backbone_multiplier: float) -> float:
        """From the first block, with `backbone_multiplier`, to the last one, with 1, by one factor from block to block.

        Layer-wise decay, as in `configure_optimizers` of the authors' training/lightning_module.py.
        """
        part, _, rest = name.partition(".")
        if part == "tokens":
            return backbone_multiplier
        if part != "blocks":
            return 1.0
        last = len(self.blocks) - 1
        return float(backbone_multiplier ** ((last - int(rest.partition(".")[0])) / max(1, last)))

    def repeated_blocks(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def _predict(self, x_BND: Tensor) -> dict[str, Tensor]:
        """Class and mask logits of normalised tokens, float32, under their names in `SegmentationOutput`."""
        classes_BQK1 = self.class_predictor(x_BND[:, : self.config.num_queries])
        return {
            "class_queries_logits": classes_BQK1.float(),
            "masks_queries_logits": self._masks(x_BND).float(),
        }

    def _masks(self, x_BND: Tensor) -> Tensor:
        """Mask logits [B, Q, h, w] of normalised tokens."""
        side, num_queries = self.config.grid_side, self.config.num_queries
        patches_BPD = x_BND[:, -(side * side) :]
        map_BhwD = self.upscale(patches_BPD.unflatten(1, (side, side)))
        queries_BQD = self.mask_head(x_BND[:, :num_queries])
        masks: Tensor = queries_BQD @ map_BhwD.flatten(1, 2).transpose(1, 2)
        return masks.unflatten(2, map_BhwD.shape[1:3])

    def _may_attend(self, masks_BQhw: Tensor, x_BND: Tensor, share: float = 1.0) -> Tensor:
        """Which token may read which, [B, N, N]: this share of the queries, drawn at random, read only patches inside
        of their masks.
        """
        side, num_queries = self.config.grid_side, self.config.num_queries
        masks_BQhw = F.interpolate(masks_BQhw.detach(), size=(side, side), mode="bilinear")
        batch, num_tokens = x_BND.shape[:2]
        may_attend_BNN = torch.ones(batch, num_tokens, num_tokens, dtype=torch.bool, device=x_BND.device)
        inside_BQP = masks_BQhw.flatten(2) > 0
        if share < 1:
            inside_BQP |= (torch.rand(batch, num_queries, device=x_BND.device) > share)[..., None]
        may_attend_BNN[:, :num_queries, -(side * side) :] = inside_BQP
        return may_attend_BNN


def _read_mask_probs(model: Eomt, _: object) -> None:
    """Learn from a checkpoint which blocks mask. ValueError if one masks sometimes: its results would be random."""
    if model.attn_mask_probs.is_meta:
        return
    probs = model.attn_mask_probs.tolist()
    if any(prob not in (0.0, 1.0) for prob in probs):  # as in the files of other programs
        raise ValueError(
            f"attn_mask_probs has {probs}: the training stopped while it was still turning masked attention off, so "
            "transformers would mask at random; set each of these numbers to 0 or to 1"
        )
    model.mask_shares = probs


def build_model(config: PlainTransformerConfig) -> Eomt:
    """The model with PyTorch's own initial weights, in training mode; `load_checkpoint` gives a trained one."""
    dim, activation = config.hidden_size, ACTIVATIONS[config.hidden_act]
    rotary = RotaryPositions(config) if isinstance(config, EomtDinov3Config) else None
    return Eomt(
        config=config,
        tokens=PatchTokens(
            dim, config.patch_size, config.num_register_tokens, config.grid_side**2 if rotary is None else None
        ),
        rotary=rotary,
        blocks=[_block(config) for _ in range(config.num_hidden_layers)],
        upscale=[UpscaleBlock(dim, activation) for _ in range(config.num_upscale_blocks)],
        mask_head=nn.Sequential(
            ActivatedLinear(dim, dim, activation), ActivatedLinear(dim, dim, activation), nn.Linear(dim, dim)
        ),
        criterion=build_criterion(config),
    )


def _block(config: PlainTransformerConfig) -> Block:
    dim, width, activation = config.hidden_size, config.mlp_width, ACTIVATIONS[config.hidden_act]
    feedforward: nn.Module
    if isinstance(config, EomtDinov3Config):
        biases = (config.query_bias, config.key_bias, config.value_bias, config.proj_bias)
        attention = Attention(dim, config.num_attention_heads, biases)
        kind = GatedFeedForward if config.use_gated_mlp else FeedForward
        feedforward = kind(dim, width, activation, config.mlp_bias)
    else:
        assert isinstance(config, EomtConfig)
        attention = Attention(dim, config.num_attention_heads)
        is_gated = config.use_swiglu_ffn
        feedforward = GatedFeedForward(dim, width) if is_gated else FeedForward(dim, width, activation)
    return Block(dim, attention, feedforward, config.layer_norm_eps)


def build_criterion(config: PlainTransformerConfig, rand: Rand = torch.rand) -> Criterion:
    """The loss of Mask2Former, of every prediction. `rand` draws the points at which masks are compared."""
    return Criterion(
        weights=LossWeights(config.class_weight, config.mask_weight, config.dice_weight),
        no_object_weight=config.no_object_weight,
        earlier_first=True,
        num_points=config.train_num_points,
        oversample_ratio=config.oversample_ratio,
        importance_sample_ratio=config.importance_sample_ratio,
        rand=rand,
    )
