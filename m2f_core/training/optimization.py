"""Optimization: parameter groups and the learning rate schedule, as in the original `train_net.py`."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from m2f_core.model.contract import SegmentationModel

Schedule = Literal["step", "poly"]

# Shares of the whole training: COCO's 327,778 and 355,092 of 368,750 iterations.
STEP_AT = (327_778 / 368_750, 355_092 / 368_750)
STEP_FACTOR = 0.1
POLY_POWER = 0.9

# Weights that should not decay towards zero: norms, learned queries and embeddings, position biases.
_NORMS = (nn.LayerNorm, nn.GroupNorm)
_EMBEDDINGS = (
    "transformer_decoder.query_features",
    "transformer_decoder.query_positions",
    "transformer_decoder.level_embed",
)
_POSITION_BIAS = "relative_position_bias_table"


def parameter_groups(
    model: SegmentationModel, learning_rate: float, weight_decay: float, backbone_multiplier: float
) -> list[dict[str, Any]]:
    """Groups for AdamW: parameters with the same learning rate, with and without weight decay.

    `backbone_multiplier`: see the model's `rate_factor`. The pixel decoder's level embedding decays, because in the
    original it is a plain parameter and decays too.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            exempt = isinstance(module, _NORMS) or name in _EMBEDDINGS or name.endswith(_POSITION_BIAS)
            key = model.rate_factor(name, backbone_multiplier), model.decays_all or not exempt
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * factor,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (factor, decays), parameters in groups.items()
    ]


@dataclass(frozen=True)
class LearningRate:
    """The learning rate schedule as a factor of the base value."""

    schedule: Schedule
    num_iterations: int
    warmup_iterations: int

    def factor(self, iteration: int) -> float:
        """The factor for the step that follows `iteration` finished steps.

        step: a tenth after 8/9 of the training and a hundredth after 26/27 (COCO). poly: (1 - progress)^0.9 (ADE20K,
        Cityscapes, Mapillary). During the warm-up the factor also rises linearly.
        """
        progress = iteration / self.num_iterations
        rise = min(1.0, (iteration + 1) / self.warmup_iterations) if self.warmup_iterations else 1.0
        if self.schedule == "poly":
            return rise * (1.0 - progress) ** POLY_POWER
        return rise * STEP_FACTOR ** sum(progress >= step for step in STEP_AT)
