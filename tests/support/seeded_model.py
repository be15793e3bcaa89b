"""A model with random weights that nevertheless segments: for demonstrations, and for tests that need no checkpoint.

Plain random weights give one class for all queries and masks that are everywhere on or off. Here they are arranged so
that photographs come out as a handful of confident segments that follow colours and textures. They mean nothing.
"""

import re
from itertools import chain
from typing import overload

import torch
from torch import Tensor, nn

from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.config.model_config import ModelConfig
from m2f_core.families.registry import family_of
from m2f_core.model.contract import SegmentationModel
from m2f_core.model.mask2former import Mask2Former
from m2f_core.model.resnet import FrozenBatchNorm

# Found by looking at photographs with the tiny configuration.
CLASS_SPREAD = 6.0  # standard deviation of a query's class logits: about every third query is sure of one class
NO_OBJECT_LOGIT = 8.0
MASK_SPREAD = 6.0  # standard deviation of a mask's logits over the image, roughly
MASK_THRESHOLD = 0.9  # in those standard deviations: masks that cover less of the image overlap less
BRANCH_SCALE = 0.2  # of what attention adds in the decoder; it is much the same for all queries and would make them one
POSITION_SPREAD = 4.0  # of learned positions, where queries have nothing else
SHARPNESS = 6.0  # of what the query transformer reads: its queries, which all start as the task, come apart
BLOCK_SCALE = 0.3  # of what a block of a ResNet adds; the sums of a deep one would grow without bound
LATERAL_SCALE = 0.5  # of the fine features against the coarse ones: smoother masks
REGAIN = 1.5  # what centred weights behind a ReLU are multiplied with, to keep the spread
OFFSET_SPREAD = 2.0  # cells between where a token is and where it looks


@overload
def seeded_model(config: Mask2FormerConfig, seed: int) -> Mask2Former: ...
@overload
def seeded_model(config: ModelConfig, seed: int) -> SegmentationModel: ...


def seeded_model(config: ModelConfig, seed: int) -> SegmentationModel:
    """The same weights for the same seed, whatever the global random state, in eval mode; of any family.

    Every parameter and every statistic of a batch norm is jittered, also those that start at zero or one when a model
    is trained, so that a mistake in how any of them is used or stored shows in the result.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):  # shapes only; no draw from the global generator
        model = family_of(config.to_dict()).build_model(config)
    stored = model.state_dict()  # not all buffers are
    weights = {
        f"{module_name}.{name}": _draw(module, name, tensor.shape, generator)
        for module_name, module in model.named_modules()
        for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        if f"{module_name}.{name}" in stored
    }
    _arrange(weights)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def _draw(module: nn.Module, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if name == "num_batches_tracked":
        return torch.randint(1, 1000, shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    if name == "running_var":
        return noise.exp()
    if name in ("query_features", "query_positions", "level_embed"):
        return noise
    if name == "relative_position_bias_table":
        return 0.5 * noise
    if noise.dim() > 1:
        return noise * noise[0].numel() ** -0.5  # the output varies as much as the input
    is_scale = isinstance(module, (nn.LayerNorm, nn.GroupNorm, FrozenBatchNorm)) and name == "weight"
    return 0.1 * noise + (1.0 if is_scale else 0.0)


def _arrange(weights: dict[str, Tensor]) -> None:
    # Queries without features of their own differ by what they attend to alone, so they must choose and take much.
    have_features = "transformer_decoder.query_features" in weights
    if not have_features:
        weights["transformer_decoder.query_positions"] *= POSITION_SPREAD
    for name, weight in weights.items():
        if name.endswith("sampling_offsets.bias"):
            weight *= OFFSET_SPREAD / 0.1
        elif name == "pixel_decoder.lateral.norm.weight":
            weight *= LATERAL_SCALE
        elif re.fullmatch(r"transformer_decoder\.layers\.\d+\.(\w+\.out_proj|fc2)\.weight", name):
            weight *= BRANCH_SCALE if have_features else 1.0
        elif re.fullmatch(r"query_transformer\.layers\.\d+\.cross_attention\.(q_proj|out_proj)\.weight", name):
            weight *= SHARPNESS
        elif re.fullmatch(r"backbone\.stages\.\d+\.\d+\.(expand|second)\.norm\.weight", name):
            weight *= BLOCK_SCALE

    # Behind a ReLU all inputs are positive; with weights that add up to zero their mean does not reach the masks, where
    # it would be the same for all queries or all cells.
    second, last = (f"transformer_decoder.mask_embedder.layers.{index}" for index in (1, 2))
    project = "pixel_decoder.mask_projection"
    for linear in (second, last, project):
        weight = weights[f"{linear}.weight"]
        weight -= weight.double().mean(dim=1, keepdim=True).float()
        weight *= REGAIN
    weights[f"{project}.weight"] *= MASK_SPREAD * len(weights[f"{project}.weight"]) ** -0.5

    # Channel 0 of the mask features is nearly constant and lowers every mask.
    for linear, value in ((project, -1.0), (last, MASK_THRESHOLD * MASK_SPREAD)):
        weights[f"{linear}.weight"][0] *= 0.05
        weights[f"{linear}.bias"][0] = value

    weights["class_predictor.weight"] *= CLASS_SPREAD
    weights["class_predictor.weight"][-1] *= 0.3
    weights["class_predictor.bias"][-1] = NO_OBJECT_LOGIT
